"""Programs kept between calls: who explains one image after the other pays for one recording.

A program is used again only for the model as it was: its parts, hooks, flags, plain attributes and every element of
its tensors are compared, and some results with the model's own on every call besides.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules import module as nn_module
from torch.utils._python_dispatch import _disable_current_modes

from attribkit.engine.incremental.program import Program

#: Of how many models programs are kept, one each; they hold copies of the weights.
MODELS = 2

#: Up to how many bytes of convolutions' weights a program is kept.
BYTES = 1 << 29

#: How deep plain attributes are looked into.
_DEPTH = 3

#: How many of an attribute's elements are looked at.
_MOST = 1000

_PLAIN = frozenset({bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device})
_APART = frozenset({"_parameters", "_buffers", "_modules"})
_HOOKS = frozenset({dict, OrderedDict})  # a module has a dozen of them, empty as a rule

#: Tensors of fewer elements are put together before they are summed.
_SMALL = 1 << 14

_lock = threading.Lock()
_programs: WeakKeyDictionary[nn.Module, tuple[Any, list[Any], Program]] = WeakKeyDictionary()


def kept(model: nn.Module, case: Any) -> Program | None:
    """Return the program of an earlier call where the model and the case (anything comparable) are what they were."""
    with _lock:
        found = _programs.get(model)
    if found is None or found[0] != case or found[1] != fingerprint(model):
        return None
    return found[2]


def keep(model: nn.Module, case: Any, program: Program) -> None:
    """Keep a program for the next call with this model, in place of an older one."""
    kernels = (node.params["kernel"].weight for node in program.plan.graph.nodes if node.op == "conv")
    if sum(weight.numel() * weight.element_size() for weight in kernels) > BYTES:
        return
    entry = (case, fingerprint(model), program)
    with _lock:
        _programs.pop(model, None)
        for other in list(_programs)[: 1 - MODELS]:
            del _programs[other]
        _programs[model] = entry


def forget(model: nn.Module) -> None:
    """Let go of a model's program."""
    with _lock:
        _programs.pop(model, None)


def fingerprint(model: nn.Module) -> list[Any]:
    """Return what a model's forward pass is made of, to be compared with what it is at another time.

    Objects are told apart by where they are, tensors by that, by torch's count of writes, and by the sum of their bits:
    ``parameter.data.mul_(2)`` is not counted. Nothing of the model is held on to.
    """
    found: list[Any] = [type(mode) for mode in _modes()]
    everywhere = {name: hooks for name, hooks in vars(nn_module).items() if name.startswith("_global_")}
    found += [tuple(hooks) for hooks in everywhere.values() if isinstance(hooks, dict)]
    tensors: list[Tensor] = []
    seen: set[int] = set()
    for module in model.modules():
        attributes = vars(module)
        found += (id(module), id(type(module)), id(type(module).forward), tuple(attributes))
        for own in (module._parameters, module._buffers):
            found.append(tuple(own))
            tensors += [tensor for tensor in own.values() if tensor is not None]
        for name, value in attributes.items():
            if type(value) in _PLAIN:
                found.append(value)
            elif name not in _APART and not (type(value) in _HOOKS and not value):
                _look(value, found, tensors, seen, _DEPTH)
    found += map(_place, tensors)
    # whoever watches the model's operations is shown none of these
    with torch.no_grad(), torch._C.DisableTorchFunction(), _disable_current_modes():
        found += _sums(tensors)
    return found


def _look(value: Any, found: list[Any], tensors: list[Tensor], seen: set[int], depth: int) -> None:
    """Note a plain attribute: numbers and texts, what containers and simple objects hold, where others are."""
    if type(value) in _PLAIN:
        found.append(value)
        return
    found.append(id(value))
    if isinstance(value, Tensor):
        tensors.append(value)
    if isinstance(value, (Tensor, nn.Module, type)) or callable(value) or depth == 0 or id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, dict):
        found.append(tuple(key if type(key) in _PLAIN else id(key) for key in value))
        inside = list(value.values())
    elif isinstance(value, (list, tuple, set, frozenset)):
        inside = list(value)
    else:
        inside = list(getattr(value, "__dict__", {}).values())
    found.append(len(inside))
    for part in inside[:_MOST]:
        _look(part, found, tensors, seen, depth - 1)


def _modes() -> Iterator[Any]:
    """Return torch's modes that see the model's calls."""
    yield from torch.overrides._get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    yield from torch.utils._python_dispatch._get_current_dispatch_mode_stack()


def _place(tensor: Tensor) -> Any:
    try:
        version = None if tensor.is_inference() else tensor._version
        return (id(tensor), tensor.data_ptr(), version, tensor.shape, tensor.stride(), tensor.dtype, tensor.device)
    except (RuntimeError, NotImplementedError):  # of a kind of its own: never taken for the same
        return object()


def _sums(tensors: list[Tensor]) -> list[Any]:
    """Return the sums of all tensors' bits, read from each device at once."""
    groups: dict[Any, list[Tensor]] = {}
    sums: dict[torch.device, list[Tensor]] = {}
    try:
        for tensor in tensors:
            few = tensor.numel() < _SMALL
            key = (tensor.device, tensor.dtype) if few else id(tensor)
            groups.setdefault(key, []).append(tensor.detach().reshape(-1))
        for alike in groups.values():
            joined = torch.cat(alike) if len(alike) > 1 else alike[0]
            sums.setdefault(joined.device, []).append(_bits(joined).sum())
        return [torch.stack(numbers).tolist() for numbers in sums.values()]
    except (RuntimeError, NotImplementedError):  # of a kind that cannot be summed: never taken for the same
        return [object()]


def _bits(tensor: Tensor) -> Tensor:
    flat = tensor.view(torch.uint8)
    for dtype in (torch.int64, torch.int32, torch.int16):
        if flat.numel() % dtype.itemsize == 0 and flat.storage_offset() % dtype.itemsize == 0:
            return flat.view(dtype)
    return flat
