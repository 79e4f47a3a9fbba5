"""Where the features are in a layer's output, followed from tensor to tensor through one forward pass."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

#: The layouts a unit can be addressed in; C is the feature dimension.
LAYOUTS = ("NCHW", "NHWC", "NTC", "NC")

_LETTERS = {(4, 1): "NCHW", (4, 3): "NHWC", (3, 2): "NTC", (2, 1): "NC"}
_CHANNELS_FIRST = frozenset({"conv", "batch_norm", "max_pool", "avg_pool", "contrast_norm"})
_OVER_CHANNELS_FIRST = frozenset({"group_norm", "instance_norm"})
_OVER_LAST = frozenset({"layer_norm", "rms_norm"})
_UNKNOWN_AFTER = frozenset({"scaled_dot_product_attention", "einsum", "bmm", "baddbmm", "mm"})


class Layouts:
    """Follows where the feature dimension goes.

    Convolutions, batch norms and pools put it second, linear layers and layer norms over the last dimension put it
    last; permutations and reshapes move it; every other operation keeps what its first input of the same shape has.

    Parameters
    ----------
    model
        Its ``output_fmt`` (timm), where it has one, decides for the stages its ``feature_info`` names.
    active
        Whether to follow at all: only units and inspections ask.
    """

    def __init__(self, model: nn.Module, *, active: bool) -> None:
        self.active = active
        self._channel = WeakTensorKeyDictionary()
        fmt = getattr(model, "output_fmt", None) if active else None
        fmt = str(getattr(fmt, "value", fmt)) if fmt is not None else None
        self._stage_format = fmt if fmt in LAYOUTS else None
        self._stages = stage_names(model) if self._stage_format else frozenset()

    def set(self, tensor: Tensor, channel: int) -> None:
        """Note that ``channel`` is a tensor's feature dimension."""
        if self.active:
            self._channel[tensor] = channel

    def channel(self, tensor: Tensor) -> int | None:
        """Return a tensor's feature dimension, None where it is not known."""
        found: int | None = self._channel.get(tensor)  # type: ignore[no-untyped-call]
        return found

    def inherit(self, sources: Iterable[Any], tensor: Tensor | None) -> None:
        """Give a tensor the feature dimension of the first source that has its shape, or one that fits."""
        if not self.active or tensor is None:
            return
        known = [s for s in sources if isinstance(s, Tensor) and s in self._channel and s is not tensor]
        for source in sorted(known, key=lambda s: s.shape != tensor.shape):
            channel = _moved_with(source.shape, int(self._channel[source]), tensor.shape)
            if channel is not None:
                self._channel[tensor] = channel
                return

    def after(self, kind: str | None, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], value: Any) -> None:
        """Note what a function call did; an unknown function has a name but no kind."""
        if isinstance(value, (tuple, list)):  # chunk, split, unbind
            for part in value:
                self.after(kind, name, args, kwargs, part)
            return
        if not self.active or not isinstance(value, Tensor) or value.ndim < 2:
            return
        if kind in _CHANNELS_FIRST or name in _OVER_CHANNELS_FIRST:
            self._channel[value] = 1
        elif kind == "linear" or (name in _OVER_LAST and _over_one(args, kwargs)) or name.startswith("multi_head"):
            self._channel[value] = value.ndim - 1
        elif name in _UNKNOWN_AFTER:
            self._channel.pop(value, None)  # type: ignore[no-untyped-call]
        elif name in _MOVES:
            source = args[0] if args else None
            channel = self.channel(source) if isinstance(source, Tensor) else None
            if isinstance(source, Tensor) and channel is not None:
                moved = _MOVES[name](source, channel, args[1:], kwargs)
                if moved is not None:
                    self._channel[value] = moved
        elif value not in self._channel:
            tensors = args[0] if args and isinstance(args[0], (tuple, list)) else args
            self.inherit((*tensors, *kwargs.values()), value)

    def of(self, value: Tensor | None, name: str | None = None) -> str | None:
        """Return the layout of an output, None where its feature dimension is not known."""
        if not self.active or value is None:
            return None
        if value.ndim == 2:
            return "NC"
        if value.ndim == 4 and name is not None and name in self._stages:
            return self._stage_format
        channel = self.channel(value)
        return None if channel is None else _LETTERS.get((value.ndim, channel))


def stage_names(model: nn.Module) -> frozenset[str]:
    """Return the module paths that timm's ``feature_info`` names, empty where the model has none."""
    info = getattr(model, "feature_info", None)
    if info is None:
        return frozenset()
    try:
        rows = info.info if hasattr(info, "info") else list(info)
        return frozenset(str(row["module"]) for row in rows if isinstance(row, dict) and row.get("module"))
    except (TypeError, KeyError, AttributeError):
        return frozenset()


def _over_one(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    shape = args[1] if len(args) > 1 else kwargs.get("normalized_shape")
    return isinstance(shape, int) or (isinstance(shape, Sequence) and len(shape) == 1)


def _moved_with(before: torch.Size, channel: int, after: torch.Size) -> int | None:
    """Return where the feature dimension is after an operation known only by its shapes."""
    size = before[channel]
    rest_before = (*before[:channel], *before[channel + 1 :])
    if len(after) == len(before) and rest_before == (*after[:channel], *after[channel + 1 :]):
        return channel  # joined or cut along the features
    if len(after) == len(before) and after[channel] == size:
        return channel
    if channel == len(before) - 1 and len(after) >= 2 and after[-1] == size:
        return len(after) - 1
    if channel == 1 and len(after) >= 2 and after[0] == before[0] and after[1] == size:
        return 1
    return None


def _permuted(source: Tensor, channel: int, rest: tuple[Any, ...], kwargs: dict[str, Any]) -> int | None:
    dims = kwargs.get("dims", rest[0] if len(rest) == 1 and not isinstance(rest[0], int) else rest)
    places = [int(d) % source.ndim for d in dims]
    return places.index(channel) if channel in places else None


def _transposed(source: Tensor, channel: int, rest: tuple[Any, ...], kwargs: dict[str, Any]) -> int | None:
    dims = [d % source.ndim for d in (*rest, *kwargs.values()) if isinstance(d, int)]
    if len(dims) != 2:
        return None
    return {dims[0]: dims[1], dims[1]: dims[0]}.get(channel, channel)


def _moved(source: Tensor, channel: int, rest: tuple[Any, ...], kwargs: dict[str, Any]) -> int | None:
    named = (*rest, *(kwargs[key] for key in ("source", "destination") if key in kwargs))
    if len(named) != 2:
        return None
    # a tensor of no elements, whose sizes are the dimensions' numbers, tells where each one goes
    marked = torch.empty(tuple(range(source.ndim)), device="meta").movedim(*named)
    return list(marked.shape).index(channel)


def _swapped_last(source: Tensor, channel: int, rest: tuple[Any, ...], kwargs: dict[str, Any]) -> int | None:
    last = source.ndim - 1
    return {last: last - 1, last - 1: last}.get(channel, channel)


def _flattened(source: Tensor, channel: int, rest: tuple[Any, ...], kwargs: dict[str, Any]) -> int | None:
    start = kwargs.get("start_dim", rest[0] if rest else 0) % source.ndim
    end = kwargs.get("end_dim", rest[1] if len(rest) > 1 else -1) % source.ndim
    if channel < start:
        return channel
    return channel - (end - start) if channel > end else None


_MOVES = {
    "permute": _permuted,
    **dict.fromkeys(("transpose", "transpose_", "swapaxes", "swapdims"), _transposed),
    **dict.fromkeys(("movedim", "moveaxis"), _moved),
    **dict.fromkeys(("mT", "adjoint"), _swapped_last),
    "flatten": _flattened,
}
