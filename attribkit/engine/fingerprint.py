"""What a model is made of, so that it can be told whether it is still what it was."""

from __future__ import annotations

import functools
import types
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as nn_module
from torch.utils._python_dispatch import _disable_current_modes

from attribkit.engine.hooks import others
from attribkit.engine.tree import paths_of

#: How deep plain attributes are looked into.
_DEPTH = 3

#: How many objects are looked at; a model with more in its attributes is never taken for the same.
_MOST = 20_000

_PLAIN = frozenset({bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device})
_APART = frozenset({"_parameters", "_buffers", "_modules", "training"})
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_FUNCTIONS = frozenset({types.FunctionType, types.BuiltinFunctionType, staticmethod, classmethod, property})
_DICTS = frozenset({dict, OrderedDict})

#: Tensors of fewer elements are put together before they are summed.
_SMALL = 1 << 14

#: How many sums are made of a large tensor: each of the elements that lie this many places apart, so that what changes
#: places is seen. A prime, unlike the sizes of layers.
_COLUMNS = 8191


def fingerprint(model: nn.Module, *, values: bool = True) -> list[Any]:
    """Return what a model's forward pass is made of, to be compared with what it is at another time.

    Objects are told apart by where they are, tensors by that, by torch's count of writes, and by sums of their bits:
    ``parameter.data.mul_(2)`` is not counted. Nothing of the model is held on to but functions.

    Parameters
    ----------
    model
        The model.
    values
        Whether the tensors' values count, and the modes that the model and torch are in.
    """
    found: list[Any] = [type(mode) for mode in _modes()] if values else []
    everywhere = {name: hooks for name, hooks in vars(nn_module).items() if name.startswith("_global_")}
    found += [tuple(hooks) for hooks in everywhere.values() if isinstance(hooks, dict)]
    classes: set[type] = set()
    tensors: list[Tensor] = []
    seen: set[int] = set()
    try:
        for module in paths_of(model):
            attributes = vars(module)
            classes.add(type(module))
            found += (id(module), id(type(module)), *attributes, *module._modules)
            for own in (module._parameters, module._buffers):
                if own:
                    found += own
                    tensors += [tensor for tensor in own.values() if tensor is not None]
            if values:
                found.append(module.training)
            for name, value in attributes.items():
                if name in _OF_EVERY_MODULE:  # a dozen of them hold hooks, none as a rule
                    if value and name not in _APART and others(value):
                        _look(value, found, tensors, seen, _DEPTH)
                elif type(value) in _PLAIN:
                    found.append(value)
                else:
                    _look(value, found, tensors, seen, _DEPTH)
        # methods may be exchanged, and torch's functions
        for base in dict.fromkeys(base for cls in classes for base in cls.__mro__ if base is not object):
            found += [value if type(value) in _FUNCTIONS else id(value) for value in vars(base).values()]
        found += [value for value in vars(F).values() if callable(value)]
        # whoever watches the model's operations is shown none of these
        with torch.no_grad(), torch._C.DisableTorchFunction(), _disable_current_modes():
            found += map(_place, tensors)
            if values:
                found += [None if tensor.is_inference() else tensor._version for tensor in tensors]
                found += _sums(tensors)
    except Exception:  # an attribute that cannot be looked at, a tensor that cannot be summed: never the same
        found.append(object())
    return found


def _look(value: Any, found: list[Any], tensors: list[Tensor], seen: set[int], depth: int) -> None:
    """Note a plain attribute: numbers and texts, what containers and simple objects hold, where others are."""
    if type(value) in _PLAIN:
        found.append(value)
        return
    found.append(value if type(value) in _FUNCTIONS else id(value))  # another may come to lie in its place
    if isinstance(value, Tensor):
        tensors.append(value)
    if isinstance(value, (Tensor, nn.Module, type)) or callable(value) or id(value) in seen:
        return
    if type(value) in _DICTS:
        found.append(tuple(key if type(key) in _PLAIN else id(key) for key in value))
        inside = list(value.values())
    elif type(value) in (list, tuple, set, frozenset):
        inside = list(value)
    else:
        inside = list(getattr(value, "__dict__", {}).values())
    seen.add(id(value))
    found.append(len(inside))
    if inside and (depth == 0 or len(seen) + len(inside) > _MOST):
        found.append(object())  # what is not looked at cannot be told
        return
    for part in inside:
        _look(part, found, tensors, seen, depth - 1)


def _modes() -> Iterator[Any]:
    """Return torch's modes that see the model's calls."""
    yield from torch.overrides._get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    yield from torch.utils._python_dispatch._get_current_dispatch_mode_stack()


def _place(tensor: Tensor) -> Any:
    return (id(tensor), tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device)


def _sums(tensors: list[Tensor]) -> list[Any]:
    """Return sums of all tensors' bits, read from each device at once."""
    groups: dict[Any, list[Tensor]] = {}
    sums: dict[torch.device, list[Tensor]] = {}
    for tensor in tensors:
        key = (tensor.device, tensor.dtype) if tensor.numel() < _SMALL else id(tensor)
        groups.setdefault(key, []).append(tensor.detach().reshape(-1))
    for alike in groups.values():
        joined = torch.cat(alike) if len(alike) > 1 else alike[0]
        sums.setdefault(joined.device, []).append(_sum(_bits(joined)))
        if joined.dtype == torch.float64:  # its uppermost bits alone may cancel in sums of integers
            sums[joined.device].append(joined.sum().view(torch.int64))
    return [torch.stack(numbers).tolist() for numbers in sums.values()]


def _sum(bits: Tensor) -> Tensor:
    """Return one number of integers [n] that depends on their places."""
    rows = len(bits) // _COLUMNS
    body, rest = bits[: rows * _COLUMNS].view(rows, _COLUMNS), bits[rows * _COLUMNS :]
    columns = body.sum(0, dtype=torch.int64)
    columns[: len(rest)] += 3 * rest.to(torch.int64)
    return ((columns ^ (columns >> 29)) * _factors(bits.device)).sum()


@functools.cache
def _factors(device: torch.device) -> Tensor:
    """Return a number for each sum, odd, and of no order."""
    factors = 2 * torch.arange(_COLUMNS, device=device) + 1
    return factors * (factors * 0x9E3779B97F4A7C1)


def _bits(tensor: Tensor) -> Tensor:
    flat = tensor.view(torch.uint8)
    for dtype in (torch.int64, torch.int32, torch.int16):
        if flat.numel() % dtype.itemsize == 0 and flat.storage_offset() % dtype.itemsize == 0:
            return flat.view(dtype)
    return flat
