"""Putting steps into the model's graph, where nothing stands against it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from attribkit.engine.intercept import only_our_modes
from attribkit.engine.lean import convolutions, pools, rectifiers, weighted
from attribkit.engine.lean.alone import holders, is_alone
from attribkit.engine.lean.step import Step
from attribkit.engine.ops import functions_named
from attribkit.engine.splice import is_transformed

if TYPE_CHECKING:
    from attribkit.engine.inverse import SiteCall
    from attribkit.engine.splice import FunctionCall

Rule = Callable[[Tensor, "FunctionCall"], Step | None]

_RULES: dict[str, Rule] = {
    "conv1d conv2d conv3d": convolutions.Convolution.of,
    "linear": weighted.Linear.of,
    "batch_norm": weighted.BatchNorm.of,
    "avg_pool2d": weighted.AveragePool.of,
    "adaptive_avg_pool2d": weighted.AveragePool.of_adaptive,
    "relu relu_": rectifiers.ReLU.of,
    "relu6 hardtanh hardtanh_": rectifiers.Hardtanh.of,
    "leaky_relu leaky_relu_": rectifiers.LeakyReLU.of,
    "max_pool2d": pools.MaxPool.of,
}

#: Elements of a signal below which its memory is not worth asking for.
SMALL = 1 << 16


@functools.cache
def _rules() -> dict[Any, Rule]:
    return {function: rule for names, rule in _RULES.items() for function in functions_named(names)}


class Lean:
    """Lean steps for one forward pass.

    Attributes
    ----------
    used : bool
        Whether a step has been put into the graph.
    """

    def __init__(self) -> None:
        self.used = False
        self._rules = _rules()
        self._possible = only_our_modes()
        # those of the caller see what is kept; those that the model sets (checkpoints) expect autograd's own
        self._hooks = _saving_hooks()
        is_alone.prepare()

    def step(self, call: FunctionCall) -> Step | None:
        """Return the lean step of a call; None where it is to be left to autograd."""
        rule = self._rules.get(call.function)
        if rule is None or not self._possible or not call.args:
            return None
        with torch._C.DisableTorchFunction():  # a look at a tensor is no function of the model's
            return self._step(rule, call)

    def _step(self, rule: Rule, call: FunctionCall) -> Step | None:
        x = call.args[0]
        if type(x) is not Tensor or not x.requires_grad or not torch.is_grad_enabled() or not x.numel():
            return None
        if x.device.type not in ("cpu", "cuda") or x.layout != torch.strided or not x.is_floating_point():
            return None
        if _is_watched(x) or _saving_hooks() != self._hooks:
            return None
        return rule(x, call)

    def apply(self, step: Step, call: FunctionCall, site: SiteCall | None = None) -> Any:
        """Run a call with its lean step in the model's graph, or with a site's inverse layer for its derivative."""
        self.used = True
        return _Lean.apply(call.args[0], step, call, site)


def _saving_hooks() -> Any:
    return torch._C._autograd._top_saved_tensors_default_hooks(True)


def _is_watched(x: Tensor) -> bool:
    """Tell whether something else than autograd's ordinary way back has an interest in what happens to a tensor."""
    return (
        is_transformed()
        or forward_ad._current_level >= 0
        or torch.is_autocast_enabled(x.device.type)
        or torch.compiler.is_compiling()
    )


class _Lean(torch.autograd.Function):
    """An operation that keeps what its step says."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Step, call: FunctionCall, site: SiteCall | None) -> Tensor:
        output: Tensor
        if step.in_place:  # the caller's modes guard what is written to
            output = call.run()
        else:
            with torch._C.DisableTorchFunction():
                output = step.run(call)
        if output is x:
            ctx.mark_dirty(x)
        if site is None or not site.layer.signal_only:
            with torch._C.DisableTorchFunction():
                step.keep(output)
        ctx.save_for_backward(*step.kept)
        step.kept = ()
        ctx.step, ctx.site = step, site
        ctx.set_materialize_grads(False)
        return output

    @staticmethod
    def backward(ctx: Any, *signals: Tensor | None) -> tuple[Tensor | None, None, None, None]:
        (signal,) = signals
        if signal is None:
            return None, None, None, None
        step, site, kept = ctx.step, ctx.site, ctx.saved_tensors
        with torch._C.DisableTorchFunction():
            # in small signals there is nothing to be gained
            alone = signal.numel() >= SMALL and not torch.is_grad_enabled() and is_alone(holders(signal))
            carried = step.back(signal, kept, alone) if site is None else step.carried(site.layer, signal, kept, alone)
        if carried is None and site is not None:
            with site.step_of(step, kept):
                (carried,) = site.carry_all(signals)
        return carried, None, None, None
