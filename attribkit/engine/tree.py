"""A model's modules and what they hold, read in one go: torch's own generators, nested, take several times as long."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor, nn


def paths_of(model: nn.Module) -> dict[nn.Module, str]:
    """Return the path of every module, each once, in the order and by the names of ``model.named_modules()``."""
    found: dict[nn.Module, str] = {}
    waiting = [("", model)]
    while waiting:
        path, module = waiting.pop()
        if module in found:
            continue
        # its class or itself may have its own idea of what it consists of
        if getattr(module.named_modules, "__func__", None) is not nn.Module.named_modules:
            return {module: path for path, module in model.named_modules()}
        found[module] = path
        prefix = f"{path}." if path else ""
        children = [(prefix + name, child) for name, child in module._modules.items() if child is not None]
        waiting.extend(reversed(children))
    return found


def parameters_of(model: nn.Module, modules: Iterable[nn.Module]) -> list[nn.Parameter]:
    """Return the modules' own parameters, each once, and those that the model names besides."""
    found = {id(p): p for module in modules for p in module._parameters.values() if p is not None}
    names = ("parameters", "named_parameters", "_named_members")
    if any(getattr(getattr(model, name), "__func__", None) is not getattr(nn.Module, name) for name in names):
        found.update({id(p): p for p in model.parameters()})
    return list(found.values())


def tensors_of(modules: Iterable[nn.Module]) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """Yield the modules' own parameters, then their buffers, with the module and the name there."""
    modules = list(modules)
    for module in modules:
        for name, parameter in module._parameters.items():
            if parameter is not None:
                yield module, name, parameter
    for module in modules:
        for name, buffer in module._buffers.items():
            if buffer is not None:
                yield module, name, buffer
