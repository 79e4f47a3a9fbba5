"""Piecewise-linear functions of each element: one bit says which piece it was on."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor

from attribkit.engine.layers import GatedRectify, Rectify
from attribkit.engine.lean import bits, store
from attribkit.engine.lean.standin import is_dense, is_plain
from attribkit.engine.lean.step import Step
from attribkit.engine.splice import is_in_place

if TYPE_CHECKING:
    from attribkit.engine.inverse import InverseLayer
    from attribkit.engine.splice import FunctionCall


class PiecewiseLinear(Step):
    """A rectifier of two pieces; subclasses say where it is open and what its derivative makes of that.

    The derivative is torch's own, with 1 and 0 in place of the activation: it treats infinite signals and signed zeros
    as it always does.
    """

    channels_last = False
    shape: torch.Size

    def write(self, x: Tensor, out: Tensor) -> None:
        """Write the output into ``out``, by the kernel that the call itself uses."""
        raise NotImplementedError

    def open(self, flat: Tensor) -> Tensor:
        """Return the packed mask of the output's elements [n]."""
        raise NotImplementedError

    def derivative(self, signal: Tensor, mask: Tensor, out: Tensor | None = None) -> Tensor:
        """Return the signal's way through a mask of 1 and 0."""
        raise NotImplementedError

    def through(self, signal: Tensor, packed: Tensor, out: Tensor) -> None:
        """Write a signal's way through a packed mask into ``out``, both [n], maybe the same."""
        bits.through(signal, packed, out, self.derivative)

    def run(self, call: FunctionCall) -> Tensor:
        """Run the operation as it was called, into memory made ready for it where it is large."""
        x = call.args[0]
        if not store.is_large(x):
            return super().run(call)
        out = store.on_large_pages(torch.empty_like(x))
        self.write(x, out)
        return out

    def keep(self, output: Tensor) -> None:
        """Keep the mask."""
        self.shape = output.shape
        self.channels_last = not output.is_contiguous()
        self.kept = (self.open(self._flat(output)),)

    def back(self, signal: Tensor, kept: tuple[Tensor, ...], alone: bool = False) -> Tensor:
        """Carry a signal back through the mask."""
        (packed,) = kept
        if self._lies_alike(signal) and not torch.is_grad_enabled():
            return self._through(signal, packed, alone)
        # a signal that lies otherwise: torch decides how the result does
        mask = torch.empty(self.shape, dtype=signal.dtype, device=signal.device, memory_format=self._memory_format)
        self._flat(mask).copy_(bits.unpacked(packed, self.shape.numel()))
        return self.derivative(signal, mask)

    def _through(self, signal: Tensor, packed: Tensor, alone: bool, **how: bool) -> Tensor:
        """Return the way of a signal that lies as the mask does, in its own memory where it is alone."""
        out = signal if alone else torch.empty_like(signal)
        flat = self._flat(signal)
        self.through(flat, packed, flat if alone else self._flat(out), **how)
        return out

    @property
    def _memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def _lies_alike(self, signal: Tensor) -> bool:
        return is_plain(signal) and signal.is_contiguous(memory_format=self._memory_format)

    def _flat(self, tensor: Tensor) -> Tensor:
        return (tensor.detach().permute(0, 2, 3, 1) if self.channels_last else tensor.detach()).reshape(-1)


class ReLU(PiecewiseLinear):
    """max(x, 0)."""

    @classmethod
    def of(cls, x: Tensor, call: FunctionCall) -> Step | None:
        """Return the step of a call, None where it is not known."""
        return _plain(cls(), x, call)

    def write(self, x: Tensor, out: Tensor) -> None:
        """Write the positive part."""
        torch.clamp_min(x, 0, out=out)

    def open(self, flat: Tensor) -> Tensor:
        """Open above zero, and for what is no number; nothing lies below."""
        return bits.not_zero(flat)

    def through(self, signal: Tensor, packed: Tensor, out: Tensor, positive: bool = False) -> None:
        """Write the signal, or the positive part of it, where it is open, else 0."""
        if signal.device.type == "cpu":
            bits.gated(signal, packed, out, positive=positive)
        else:
            super().through(signal.clamp(min=0) if positive else signal, packed, out)

    def carried(
        self, layer: InverseLayer, signal: Tensor, kept: tuple[Tensor, ...], alone: bool = False
    ) -> Tensor | None:
        """Rectify a signal as the deconvnet and guided backpropagation do."""
        if torch.is_grad_enabled():
            return None
        if type(layer) is Rectify and alone and is_dense(signal):  # no element lies where another does
            return signal.clamp_(min=0)
        if type(layer) is GatedRectify and self._lies_alike(signal):
            return self._through(signal, kept[0], alone, positive=True)
        return None

    def derivative(self, signal: Tensor, mask: Tensor, out: Tensor | None = None) -> Tensor:
        """Return the signal where it is open, else 0."""
        if out is None:
            return torch.ops.aten.threshold_backward(signal, mask, 0)  # type: ignore[no-any-return]
        return torch.ops.aten.threshold_backward(signal, mask, 0, grad_input=out)  # type: ignore[no-any-return]


class Hardtanh(ReLU):
    """max(low, min(x, high)), as ReLU6 is."""

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = low, high

    @classmethod
    def of(cls, x: Tensor, call: FunctionCall) -> Step | None:
        """Return the step of a call, None where it is not known."""
        if call.operation.name == "relu6":
            return _plain(cls(0.0, 6.0), x, call)
        bound = call.bound
        low, high = bound.get("min_val"), bound.get("max_val")
        if not (_is_number(low) and _is_number(high)):
            return None
        # torch compares half-precision inputs with the ends in float32; an output at an end that half precision has to
        # round does not tell an input just inside from one beyond
        half = x.dtype in (torch.float16, torch.bfloat16)
        rounded = half and any(torch.tensor(end, dtype=x.dtype, device="cpu").item() != end for end in (low, high))
        return _plain(cls(low, high), x, call) if not rounded else None

    def write(self, x: Tensor, out: Tensor) -> None:
        """Write what lies between the ends."""
        torch.ops.aten.hardtanh.out(x, self.low, self.high, out=out)

    def open(self, flat: Tensor) -> Tensor:
        """Open between the ends; closed for what is no number.

        There torch has it both ways: its derivative is 0 wherever whole vectors are computed at once and 1 for the few
        elements that are left over at the end.
        """
        if self.low == 0:  # nothing lies below
            return bits.not_zero(flat, below=self.high)
        return bits.between(flat, self.low, self.high)

    def derivative(self, signal: Tensor, mask: Tensor, out: Tensor | None = None) -> Tensor:
        """Return the signal where it is open, else 0: by torch's own function, which lays its result out otherwise."""
        function = torch.ops.aten.hardtanh_backward
        if out is None:
            return function(signal, mask, 0, 2)  # type: ignore[no-any-return]
        return function(signal, mask, 0, 2, grad_input=out)  # type: ignore[no-any-return]


class LeakyReLU(PiecewiseLinear):
    """X above zero, x times a slope below."""

    def __init__(self, slope: float) -> None:
        self.slope = slope

    @classmethod
    def of(cls, x: Tensor, call: FunctionCall) -> Step | None:
        """Return the step of a call, None where it is not known."""
        slope = call.bound.get("negative_slope")
        # with a negative slope the output's sign says nothing
        return _plain(cls(slope), x, call) if _is_number(slope) and slope >= 0 else None

    def write(self, x: Tensor, out: Tensor) -> None:
        """Write the value, times the slope below zero."""
        torch.ops.aten.leaky_relu.out(x, self.slope, out=out)

    def open(self, flat: Tensor) -> Tensor:
        """Open above zero."""
        return bits.above(flat, 0)

    def derivative(self, signal: Tensor, mask: Tensor, out: Tensor | None = None) -> Tensor:
        """Return the signal where it is open, times the slope elsewhere."""
        function = torch.ops.aten.leaky_relu_backward
        if out is None:
            return function(signal, mask, self.slope, False)  # type: ignore[no-any-return]
        return function(signal, mask, self.slope, False, grad_input=out)  # type: ignore[no-any-return]


def _plain(step: PiecewiseLinear, x: Tensor, call: FunctionCall) -> Step | None:
    """Return a step if the output will lie in memory without gaps, and where it is the input, be no view of another."""
    step.in_place = is_in_place(call.operation, call.function, call.args, call.kwargs)
    if not is_dense(x) or (step.in_place and (x._is_view() or x.is_leaf)):
        return None
    return step


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
