"""Max pools: where in its window each maximum was, as a small integer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from attribkit.engine import splice
from attribkit.engine.lean.standin import StandIn
from attribkit.engine.lean.step import Step, many, named

if TYPE_CHECKING:
    from attribkit.engine.splice import FunctionCall


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
        return cls(x, bound)

    def run(self, call: FunctionCall) -> Tensor:
        """Run it and keep the switches."""
        output, switches, _ = splice.pool_with_switches(call.operation, call.function, call.args, call.kwargs)
        with torch._C.DisableTorchFunction():  # nobody else's business
            self.kept = (self._places(switches),)
        return output

    def back(self, signal: Tensor, kept: tuple[Tensor, ...]) -> Tensor:
        """Put the signal at the switches."""
        settings = (self.kernel, self.stride, self.padding, self.dilation, self.ceil_mode)
        x = self.input.beside(signal)
        return torch.ops.aten.max_pool2d_with_indices_backward(signal, x, *settings, self.switches(kept))  # type: ignore[no-any-return]

    def switches(self, kept: tuple[Tensor, ...]) -> Tensor:
        """Return the switches as torch counts them."""
        (places,) = kept
        return places + self._first(places)

    def _places(self, switches: Tensor) -> Tensor:
        farthest = sum((k - 1) * d * w for k, d, w in zip(self.kernel, self.dilation, (self._width, 1), strict=True))
        kinds = (torch.uint8, torch.int16, torch.int32)
        kind = next((kind for kind in kinds if farthest <= torch.iinfo(kind).max), torch.int64)
        # straight into the small integers: no second tensor of large ones
        return torch.sub(switches, self._first(switches), out=torch.empty_like(switches, dtype=kind))

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
