"""Operations whose way back needs weights and shapes: linear layers, batch norm, average pools."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from attribkit.engine.lean.standin import StandIn
from attribkit.engine.lean.step import Step, is_fixed, many, named

if TYPE_CHECKING:
    from attribkit.engine.splice import FunctionCall

_ONLY_INPUT = [True, False, False]


class Linear(Step):
    """A linear layer of fixed weights."""

    def __init__(self, weight: Tensor) -> None:
        self.kept = (weight.detach(),)

    @classmethod
    def of(cls, x: Tensor, call: FunctionCall) -> Step | None:
        """Return the step of a call, None where it is not known."""
        bound = named(call, "weight", "bias")
        if bound is None or not is_fixed(bound["weight"], x) or not is_fixed(bound["bias"], x):
            return None
        weight = bound["weight"]
        if weight.ndim != 2:
            return None
        # autograd multiplies the other way round where the input lies column by column
        if x.ndim != 2 or not x.is_contiguous() or x.shape[1] == 1:
            return None
        return cls(weight)

    def back(self, signal: Tensor, kept: tuple[Tensor, ...]) -> Tensor:
        """Multiply by the transposed weights."""
        return signal.mm(kept[0])


class BatchNorm(Step):
    """Batch norm with running statistics: a scale for each channel."""

    def __init__(self, x: Tensor, bound: dict[str, Any]) -> None:
        self.input = StandIn.of(x)
        self.eps = bound["eps"]
        weight = bound["weight"]
        kept = [bound["running_mean"], bound["running_var"], *([] if weight is None else [weight])]
        self.kept = tuple(tensor.detach() for tensor in kept)

    @classmethod
    def of(cls, x: Tensor, call: FunctionCall) -> Step | None:
        """Return the step of a call, None where it is not known."""
        bound = named(call, "running_mean", "running_var", "weight", "bias", "training", "eps")
        if bound is None or bound["training"] is not False:
            return None
        if bound["running_mean"] is None or bound["running_var"] is None:
            return None
        if not all(is_fixed(bound[name], x) for name in ("running_mean", "running_var", "weight", "bias")):
            return None
        return cls(x, bound)

    def back(self, signal: Tensor, kept: tuple[Tensor, ...]) -> Tensor:
        """Scale, as torch does it: one factor after the other, which rounds otherwise than their product."""
        mean, var, *weight = kept
        nothing = signal.new_empty(0)
        grads = torch.ops.aten.native_batch_norm_backward(
            signal,
            self.input.beside(signal),
            weight[0] if weight else None,
            mean,
            var,
            nothing,
            nothing,
            False,
            self.eps,
            _ONLY_INPUT,
        )
        return grads[0]  # type: ignore[no-any-return]


class AveragePool(Step):
    """An average pool of two dimensions."""

    def __init__(self, x: Tensor, derivative: Any, settings: tuple[Any, ...]) -> None:
        self.input = StandIn.of(x)
        self.derivative = derivative
        self.settings = settings

    @classmethod
    def of(cls, x: Tensor, call: FunctionCall) -> Step | None:
        """Return the step of a call, None where it is not known."""
        bound = named(call, "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
        if bound is None:
            return None
        kernel, stride = many(bound["kernel_size"], 2), bound["stride"]
        settings = (
            kernel,
            [] if stride is None else many(stride, 2),
            many(bound["padding"], 2),
            bound["ceil_mode"],
            bound["count_include_pad"],
            bound["divisor_override"],
        )
        return cls(x, torch.ops.aten.avg_pool2d_backward, settings)

    @classmethod
    def of_adaptive(cls, x: Tensor, call: FunctionCall) -> Step | None:
        """Return the step of an adaptive pool's call; None for a pool to one element, of which torch keeps nothing."""
        bound = named(call, "output_size")
        if bound is None or bound["output_size"] in (1, (1, 1), [1, 1], (1,), [1]):
            return None
        return cls(x, torch.ops.aten._adaptive_avg_pool2d_backward, ())

    def back(self, signal: Tensor, kept: tuple[Tensor, ...]) -> Tensor:
        """Spread the signal over the windows."""
        return self.derivative(signal, self.input.beside(signal), *self.settings)  # type: ignore[no-any-return]
