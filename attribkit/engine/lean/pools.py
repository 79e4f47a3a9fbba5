"""Max pools: where in its window each maximum was, as a small integer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from attribkit.engine import splice
from attribkit.engine.lean import store
from attribkit.engine.lean.standin import StandIn
from attribkit.engine.lean.step import Step, are_plain, many, named

if TYPE_CHECKING:
    from attribkit.engine.splice import FunctionCall


#: Bytes of the input that go at once.
_PART = 1 << 22


class MaxPool(Step):
    """A max pool of two dimensions.

    A switch is kept as its distance from the window's first element on the map laid out row by row.
    """

    def __init__(self, x: Tensor, bound: dict[str, Any]) -> None:
        self.input = StandIn.of(x)
        self.kernel, self.padding, self.dilation = (
            many(bound[name], 2) for name in ("kernel_size", "padding", "dilation")
        )
        # torch takes an empty stride for that of the kernel
        self.stride = many(bound["stride"], 2) if bound["stride"] not in (None, [], ()) else self.kernel
        self.ceil_mode = bool(bound["ceil_mode"])

    @classmethod
    def of(cls, x: Tensor, call: FunctionCall) -> Step | None:
        """Return the step of a call, None where it is not known."""
        bound = named(call, "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
        if bound is None or bound["return_indices"] is not False or x.ndim not in (3, 4):
            return None
        stride = () if bound["stride"] is None else bound["stride"]
        return cls(x, bound) if are_plain(bound["kernel_size"], stride, bound["padding"], bound["dilation"]) else None

    def run(self, call: FunctionCall) -> Tensor:
        """Run it and keep the switches.

        On the CPU in parts of the batch with channels last, for which torch pools several times faster: the values are
        the same, and so are the switches, the first on ties.
        """
        x, *others = call.args
        rows = self._rows(x)
        if not rows:
            output, switches, _ = splice.pool_with_switches(call.operation, call.function, call.args, call.kwargs)
            self.kept = (self._places(switches, torch.empty_like(switches, dtype=self._kind)),)
            return output
        for start in range(0, len(x), rows):
            part = x[start : start + rows].contiguous(memory_format=torch.channels_last)
            values, switches, _ = splice.pool_with_switches(call.operation, call.function, (part, *others), call.kwargs)
            if not start:
                output = store.on_large_pages(x.new_empty((len(x), *values.shape[1:])))
                places = store.kept(output.shape, self._kind)
            output[start : start + rows] = values
            self._places(switches, places[start : start + rows])
        self.kept = (places,)
        return output

    def back(self, signal: Tensor, kept: tuple[Tensor, ...], alone: bool = False) -> Tensor:
        """Put the signal at the switches."""
        rows = self._rows(signal) if signal.ndim == 4 and self.input.is_contiguous else 0
        if not rows or torch.is_grad_enabled():
            return self._back(signal, self.switches(kept))
        whole = store.on_large_pages(signal.new_empty(self.input.shape))
        for start in range(0, len(signal), rows):
            part = slice(start, start + rows)
            self._back(signal[part], self.switches((kept[0][part],)), grad_input=whole[part])
        return whole

    def _back(self, signal: Tensor, switches: Tensor, **out: Tensor) -> Tensor:
        settings = (self.kernel, self.stride, self.padding, self.dilation, self.ceil_mode)
        x = self.input.beside(signal)
        return torch.ops.aten.max_pool2d_with_indices_backward(signal, x, *settings, switches, **out)  # type: ignore[no-any-return]

    def switches(self, kept: tuple[Tensor, ...]) -> Tensor:
        """Return the switches as torch counts them."""
        (places,) = kept
        return places.long().add_(self._first(places))

    def _rows(self, tensor: Tensor) -> int:
        """Return how many samples of the input go at once; 0: they all go as they are."""
        if tensor.device.type != "cpu" or tensor.ndim != 4 or not tensor.is_contiguous():
            return 0
        return max(1, _PART // (self.input.shape[1:].numel() * tensor.element_size()))

    def _places(self, switches: Tensor, out: Tensor) -> Tensor:
        # straight into the small integers: no second tensor of large ones
        return torch.sub(switches, self._first(switches), out=out)

    @property
    def _kind(self) -> torch.dtype:
        farthest = sum((k - 1) * d * w for k, d, w in zip(self.kernel, self.dilation, (self._width, 1), strict=True))
        kinds = (torch.uint8, torch.int16, torch.int32)
        return next((kind for kind in kinds if farthest <= torch.iinfo(kind).max), torch.int64)

    @property
    def _width(self) -> int:
        return self.input.shape[-1]

    def _first(self, places: Tensor) -> Tensor:
        """Return where each window begins, [rows, columns]; where it hangs over the border, where it would."""
        rows, columns = (
            torch.arange(places.shape[dim], device=places.device) * self.stride[dim] - self.padding[dim]
            for dim in (-2, -1)
        )
        return rows[:, None] * self._width + columns
