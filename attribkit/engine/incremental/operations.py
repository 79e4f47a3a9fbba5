"""What is asked of an operation that is about to be recorded: whether it can be, what it writes, what its twin is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._ops import HigherOrderOperator
from torch.utils._pytree import TreeSpec, tree_unflatten

from attribkit.engine.incremental.errors import LooksAtValues, NotReplayable

#: Operations that read or write memory by its layout, which a replay need not share.
_BY_LAYOUT = frozenset({"as_strided_scatter", "set_", "resize_", "resize_as_", "_resize_output_", "view.dtype"})


def refusal(func: Any, args: Any, kwargs: Any, tensors: list[Tensor], varies: bool) -> NotReplayable | None:
    """Return why a call cannot be recorded, None where it can; ``varies``: whether it depends on the input."""
    if isinstance(func, HigherOrderOperator):  # torch.cond and the like, which run functions
        return LooksAtValues(f"{func} is given functions")
    tags = func.tags
    name = func._schema.name.rpartition("::")[2]
    if torch.Tag.nondeterministic_seeded in tags and not _undropped(func, args, kwargs):
        return NotReplayable(f"{func} draws random numbers")
    masks = any(t.dtype in (torch.bool, torch.uint8) for t in tensors[1:])
    by_numbers = name in ("index", "index_put", "index_put_") and not masks  # tagged for the sake of masks
    by_values = torch.Tag.data_dependent_output in tags or torch.Tag.dynamic_output_shape in tags
    if varies and by_values and not by_numbers:
        return LooksAtValues(f"{func} depends on the values it is given")
    overload = func._schema.overload_name
    if name in _BY_LAYOUT or f"{name}.{overload}" in _BY_LAYOUT:
        return NotReplayable(f"{func} depends on how memory is laid out")
    if func.namespace not in ("aten", "prims", "torchvision"):
        return NotReplayable(f"{func} is not torch's own")
    if any(type(t) not in (Tensor, torch.nn.Parameter, torch.nn.Buffer) or t.layout != torch.strided for t in tensors):
        return NotReplayable(f"{func} is given tensors of another kind")
    return None


def _undropped(func: Any, args: Any, kwargs: Any) -> bool:
    """Tell whether an operation would draw numbers for its dropout alone, and drops nothing."""
    for position, argument in enumerate(func._schema.arguments):
        if argument.name == "dropout_p":
            return not kwargs.get("dropout_p", args[position] if position < len(args) else argument.default_value)
    return False


def written(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """Return the tensors that a call writes to."""
    found: list[Tensor] = []
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        value = kwargs.get(argument.name, args[position] if position < len(args) else None)
        found.extend(t for t in (value if isinstance(value, (list, tuple)) else [value]) if isinstance(t, Tensor))
    return found


def pure_twin(func: Any) -> Any:
    """Return the operation of the same arguments that returns what this one writes to its first."""
    name, overload = func._schema.name.rpartition("::")[2], func._schema.overload_name or "default"
    if not name.endswith("_") or name.endswith("__"):
        return None
    packet = getattr(torch.ops.aten, name[:-1], None)
    return getattr(packet, overload, None) if packet is not None and overload in packet.overloads() else None


def returns_the_like(pure: Any, leaves: list[Any], spec: TreeSpec, tensor: Tensor) -> bool:
    """Tell whether a pure twin returns a tensor of this one's shape and dtype; False where that cannot be told."""
    bare = [torch.empty_like(leaf, device="meta") if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    args, kwargs = tree_unflatten(bare, spec)
    try:
        returned = pure(*args, **kwargs)
    except (RuntimeError, NotImplementedError, TypeError):
        return False
    return isinstance(returned, Tensor) and (returned.shape, returned.dtype) == (tensor.shape, tensor.dtype)
