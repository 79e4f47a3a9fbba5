"""Operations whose way back needs weights and shapes: linear layers, batch norm, average pools."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from attribkit.engine.lean import store
from attribkit.engine.lean.standin import StandIn, is_dense
from attribkit.engine.lean.step import Step, are_plain, is_fixed, many, named

if TYPE_CHECKING:
    from attribkit.engine.splice import FunctionCall

_ONLY_INPUT = [True, False, False]
#: Elements of a signal from which on scaling it takes less time than torch's derivative, which looks at it once more.
SCALED = 1 << 18

_batch_norm_into = torch.ops.aten.native_batch_norm.out
_batch_norm_backward = torch.ops.aten.native_batch_norm_backward.default


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

    def back(self, signal: Tensor, kept: tuple[Tensor, ...], alone: bool = False) -> Tensor:
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

    def run(self, call: FunctionCall) -> Tensor:
        """Run the operation as it was called, into memory made ready for it where it is large."""
        x = call.args[0]
        if not store.is_large(x) or not is_dense(x):
            return super().run(call)
        mean, var, *weight = self.kept
        bias = call.bound["bias"]
        out = store.on_large_pages(torch.empty_like(x))
        unused = {"save_mean": out.new_empty(0), "save_invstd": out.new_empty(0)}
        _batch_norm_into(x, weight[0] if weight else None, bias, mean, var, False, 0.0, self.eps, out=out, **unused)
        return out

    def back(self, signal: Tensor, kept: tuple[Tensor, ...], alone: bool = False) -> Tensor:
        """Scale, as torch does it: one factor after the other, which rounds otherwise than their product.

        On the CPU torch reads the signal and the input once more, for the derivatives of what is fixed here. A large
        signal is scaled here instead.
        """
        mean, var, *weight = kept
        if signal.numel() >= SCALED and not torch.is_grad_enabled() and self._is_simple(signal):
            with np.errstate(invalid="ignore"):
                # torch takes the root in float64, too; numpy does not wake a second thread for so few
                roots = torch.from_numpy(np.sqrt((var.double() + self.eps).numpy()))
            factors = [(1 / roots).to(var.dtype), *weight]
            return _scaled(signal, factors, signal if alone else torch.empty_like(signal))
        nothing = signal.new_empty(0)
        grads = _batch_norm_backward(
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

    def _is_simple(self, signal: Tensor) -> bool:
        return (
            signal.device.type == "cpu"
            and signal.dtype in (torch.float32, torch.float64)
            and self.input.is_laid_out_as(signal)
            and is_dense(signal)
        )


def _scaled(signal: Tensor, factors: list[Tensor], out: Tensor) -> Tensor:
    """Multiply by factors for each channel, one after the other."""
    first, *others = (factor.view(-1, *[1] * (signal.ndim - 2)) for factor in factors)
    torch.mul(signal, first, out=out)
    for other in others:
        out.mul_(other)
    return out


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
        stride = () if bound["stride"] is None else bound["stride"]
        if not are_plain(bound["kernel_size"], stride, bound["padding"]):
            return None
        settings = (
            many(bound["kernel_size"], 2),
            many(stride, 2),
            many(bound["padding"], 2),
            bound["ceil_mode"],
            bound["count_include_pad"],
            bound["divisor_override"],
        )
        return cls(x, torch.ops.aten.avg_pool2d_backward.default, settings)

    @classmethod
    def of_adaptive(cls, x: Tensor, call: FunctionCall) -> Step | None:
        """Return the step of an adaptive pool's call; None for a pool to one element, of which torch keeps nothing."""
        bound = named(call, "output_size")
        if bound is None or not isinstance(size := bound["output_size"], (int, tuple, list)):
            return None  # for torch to say what is wrong
        if size in (1, (1, 1), [1, 1], (1,), [1]):
            return None
        return cls(x, torch.ops.aten._adaptive_avg_pool2d_backward.default, ())

    def back(self, signal: Tensor, kept: tuple[Tensor, ...], alone: bool = False) -> Tensor:
        """Spread the signal over the windows."""
        return self.derivative(signal, self.input.beside(signal), *self.settings)  # type: ignore[no-any-return]
