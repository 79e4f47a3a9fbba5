"""Putting a model's tensors back: parameters, buffers, and tensors that a forward pass leaves on modules."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from attribkit.engine.splice import first_tensor, is_in_place
from attribkit.engine.tree import parameters_of, paths_of


@contextmanager
def same_tensors(model: nn.Module, inputs: Tensor) -> Iterator[None]:
    """Put back what a call changes: buffers, parameters, ``requires_grad`` and ``.grad`` of parameters and inputs.

    Buffers are copied beforehand, for operations change them unseen (batch norm's statistics). A parameter is copied
    when an in-place function is about to write to it.

    Parameters
    ----------
    model
        The model about to run.
    inputs
        The caller's inputs.
    """
    modules = list(paths_of(model))
    buffers = _Buffers(modules)
    attributes = _Attributes(modules)
    parameters = [(p, p.detach(), p.requires_grad, p.grad) for p in parameters_of(model, modules)]
    guard = WriteGuard([p for p, _, _, _ in parameters])
    inputs_requires_grad, inputs_grad = inputs.requires_grad, inputs.grad if inputs.is_leaf else None
    try:
        with guard:
            yield
    finally:
        buffers.restore()
        attributes.restore()
        for parameter, data, requires_grad, grad in parameters:
            if not parameter.is_meta and parameter.data_ptr() != data.data_ptr():
                parameter.data = data
            if parameter.requires_grad != requires_grad:
                parameter.requires_grad_(requires_grad)
            if parameter.grad is not grad:
                parameter.grad = grad
        guard.restore()
        if inputs.is_leaf:
            if inputs.requires_grad != inputs_requires_grad:
                inputs.requires_grad_(inputs_requires_grad)
            if inputs.grad is not inputs_grad:
                inputs.grad = inputs_grad


class _Buffers:
    """The buffers of a model as they are now."""

    def __init__(self, modules: list[nn.Module]) -> None:
        self.kept = [
            (module, name, value, value.detach().clone() if value is not None and not value.is_meta else None)
            for module in modules
            for name, value in module._buffers.items()
        ]

    def restore(self) -> None:
        for module, name, value, copy in self.kept:
            if module._buffers.get(name) is not value:
                module._buffers[name] = value
            if value is not None and copy is not None and not _equal(value, copy):
                with torch.no_grad():
                    value.copy_(copy)


class _Attributes:
    """Tensors that are plain attributes of modules: some forward passes leave one there, with a graph hanging on it."""

    def __init__(self, modules: list[nn.Module]) -> None:
        self.modules = modules
        self.kept = {(id(m), name): value for m in self.modules for name, value in _plain_tensors(m)}

    def restore(self) -> None:
        for module in self.modules:
            for name, value in _plain_tensors(module):
                before = self.kept.get((id(module), name))
                if before is not None:
                    module.__dict__[name] = before
                elif value.grad_fn is not None:
                    module.__dict__[name] = value.detach()


def _plain_tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    attributes = module.__dict__
    return [
        (name, attributes[name]) for name in attributes.keys() - _NO_TENSORS if isinstance(attributes[name], Tensor)
    ]


#: What every module has.
_NO_TENSORS = frozenset(nn.Module().__dict__)


class WriteGuard(TorchFunctionMode):
    """Copies a parameter just before an in-place function of this thread writes to it."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        super().__init__()
        self.owners: dict[int, list[nn.Parameter]] = {}
        for parameter in parameters:
            if not parameter.is_meta:
                self.owners.setdefault(parameter.untyped_storage().data_ptr(), []).append(parameter)
        self.copies: list[tuple[nn.Parameter, Tensor]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.owners and is_in_place(None, func, args, kwargs):
            target = first_tensor(kwargs.get("out", args))
            if target is not None and not target.is_meta:
                for parameter in self.owners.pop(target.untyped_storage().data_ptr(), ()):
                    self.copies.append((parameter, parameter.detach().clone()))
        return func(*args, **kwargs)

    def restore(self) -> None:
        for parameter, copy in self.copies:
            if not _equal(parameter, copy):
                with torch.no_grad():
                    parameter.copy_(copy)


def _equal(value: Tensor, copy: Tensor) -> bool:
    """Compare bit by bit where values may be no numbers; NaN counts as itself."""
    if torch.equal(value.detach(), copy):
        return True
    return (
        value.is_floating_point()
        and torch.equal(value.detach().nan_to_num(), copy.nan_to_num())
        and torch.equal(value.detach().isnan(), copy.isnan())
    )
