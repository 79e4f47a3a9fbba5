"""Convolutions of fixed weights, large ones in parts of the batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from attribkit.engine.lean import shortcuts, store
from attribkit.engine.lean.standin import StandIn, is_in_order
from attribkit.engine.lean.step import Step, are_plain, is_fixed, many, named, windows

if TYPE_CHECKING:
    from attribkit.engine.splice import FunctionCall

_backward = torch.ops.aten.convolution_backward.default


def _settings(bound: dict[str, Any], dims: int) -> list[list[int]]:
    return [many(bound[name], dims) for name in ("stride", "padding", "dilation")]


class Convolution(Step):
    """A convolution of fixed weights.

    On the CPU torch lays its input and its output out anew, so that three or four tensors of their size are there at
    once. A large one goes in parts of the batch: that is leaner and faster. Each sample comes out the same up to
    rounding: on most machines to the bit, but torch may choose another order of adding for another batch. In 1×1
    convolutions it always does; these stay whole. Some have a `shortcut`.
    """

    def __init__(self, x: Tensor, weight: Tensor, bound: dict[str, Any]) -> None:
        self.input = StandIn.of(x)
        self.bias = None if bound["bias"] is None else [weight.shape[0]]
        self.stride, self.padding, self.dilation = _settings(bound, weight.ndim - 2)
        self.groups = bound["groups"]
        self.kept = (weight.detach(),)
        self.rows = self._rows(x, weight)
        self.shortcut = self._shortcut(x, weight)

    @classmethod
    def of(cls, x: Tensor, call: FunctionCall) -> Step | None:
        """Return the step of a call, None where it is not known."""
        bound = named(call, "weight", "bias", "stride", "padding", "dilation", "groups")
        if bound is None or not are_plain(bound["stride"], bound["padding"], bound["dilation"]):
            return None
        weight = bound["weight"]
        if not is_fixed(weight, x) or not is_fixed(bound["bias"], x) or x.ndim != weight.ndim:
            return None
        stride, *others = _settings(bound, weight.ndim - 2)
        if min(stride) < 1 or any(len(setting) != len(stride) for setting in (weight.shape[2:], *others)):
            return None  # for torch to say what is wrong
        return cls(x, weight, bound)

    def _shortcut(self, x: Tensor, weight: Tensor) -> shortcuts.Shortcut | None:
        if x.ndim != 4 or self.groups != 1 or self.dilation != [1, 1]:
            return None
        (down, right), (above, left), (height, width) = self.stride, self.padding, x.shape[2:]
        return shortcuts.shortcut(x, weight, shortcuts.Settings((down, right), (above, left), (height, width)))

    def _rows(self, x: Tensor, weight: Tensor) -> int:
        """Return how many samples go at once."""
        if x.device.type != "cpu" or x.ndim != 4 or 1 in weight.shape[2:]:
            return x.shape[0]
        if not is_in_order(x) or not is_in_order(weight):  # torch's result has channels last
            return x.shape[0]
        height, width = windows(x.shape[2:], weight.shape[2:], self.stride, self.padding, self.dilation)
        sample = x.element_size() * max(x.numel() // x.shape[0], weight.shape[0] * height * width)
        return max(1, store.LARGE // 2 // sample) if sample * x.shape[0] >= store.LARGE else x.shape[0]

    def run(self, call: FunctionCall) -> Tensor:
        """Run the operation as it was called, in parts where it is large."""
        x, *others = call.args
        if self.shortcut is not None and self.bias is None:
            found = self.shortcut.up(x, self.kept[0])
            if found is not None:
                return found
        if self.rows >= x.shape[0]:
            return super().run(call)
        return self._in_parts(x.shape[0], lambda part: call.function(x[part], *others, **call.kwargs))

    def back(self, signal: Tensor, kept: tuple[Tensor, ...], alone: bool = False) -> Tensor:
        """Convolve with the transposed weights."""
        if self.shortcut is not None and not torch.is_grad_enabled():
            found = self.shortcut.back(signal, kept[0])
            if found is not None:
                return found
        if self.rows >= signal.shape[0] or torch.is_grad_enabled():
            return self._back(signal, kept[0])
        # each part is done with when its result is there
        into = signal if alone and self.input.is_laid_out_as(signal) else None
        return self._in_parts(signal.shape[0], lambda part: self._back(signal[part], kept[0]), into)

    def _back(self, signal: Tensor, weight: Tensor) -> Tensor:
        settings = (self.stride, self.padding, self.dilation, False, [0] * len(self.stride), self.groups)
        x = self.input.beside(signal)
        only_input = [True, False, False]
        grads = _backward(signal, x, weight, self.bias, *settings, only_input)
        return grads[0]  # type: ignore[no-any-return]

    def _in_parts(self, count: int, work: Callable[[slice], Tensor], into: Tensor | None = None) -> Tensor:
        first = work(slice(0, self.rows))
        whole = store.on_large_pages(first.new_empty((count, *first.shape[1:]))) if into is None else into
        whole[: self.rows] = first
        del first
        for start in range(self.rows, count, self.rows):
            whole[start : start + self.rows] = work(slice(start, start + self.rows))
        return whole
