"""Putting steps into the model's graph, where nothing stands against it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from attribkit.engine.intercept import only_our_modes
from attribkit.engine.lean import convolutions, pools, rectifiers, weighted
from attribkit.engine.lean.alone import holders, is_alone
from attribkit.engine.lean.pixels import Pixels, by_pixels
from attribkit.engine.lean.standin import is_plain
from attribkit.engine.lean.step import Step
from attribkit.engine.lean.watched import is_watched, saving_hooks
from attribkit.engine.ops import functions_named

if TYPE_CHECKING:
    from attribkit.engine.inverse import SiteCall
    from attribkit.engine.lean.recorder import Recorder
    from attribkit.engine.splice import FunctionCall

Rule = Callable[[Tensor, "FunctionCall"], Step | None]

#: Of steps that take maps as they lie, if `Pixels` lets them.
_RULES_OF_ANY_ORDER: dict[str, Rule] = {
    "conv2d": convolutions.Convolution.of,
    "batch_norm": weighted.BatchNorm.of,
    "relu relu_": rectifiers.ReLU.of,
    "relu6 hardtanh hardtanh_": rectifiers.Hardtanh.of,
    "leaky_relu leaky_relu_": rectifiers.LeakyReLU.of,
}

_RULES: dict[str, Rule] = {
    **_RULES_OF_ANY_ORDER,
    "conv1d conv3d": convolutions.Convolution.of,
    "linear": weighted.Linear.of,
    "avg_pool2d": weighted.AveragePool.of,
    "adaptive_avg_pool2d": weighted.AveragePool.of_adaptive,
    "max_pool2d": pools.MaxPool.of,
}

#: Elements of a signal below which its memory is not worth asking for.
SMALL = 1 << 16


@functools.cache
def _rules() -> dict[Any, Rule]:
    return {function: rule for names, rule in _RULES.items() for function in functions_named(names)}


@functools.cache
def _of_any_order() -> frozenset[Any]:
    return frozenset(function for names in _RULES_OF_ANY_ORDER for function in functions_named(names))


class Lean:
    """Lean steps for one forward pass.

    Parameters
    ----------
    pixels
        The maps that lie otherwise than torch would have laid them out.
    least
        Elements of an input below which an operation without an inverse layer is left to autograd.
    recorder
        What notes the pass.

    Attributes
    ----------
    used : bool
        Whether a step has been put into the graph.
    left : bool
        Whether an operation has been left to autograd for its size.
    pixels, recorder
        The same.
    """

    def __init__(self, pixels: Pixels, least: int = 0, recorder: Recorder | None = None) -> None:
        self.used = False
        self.left = False
        self.pixels = pixels
        self.recorder = recorder
        pixels.told = recorder.laid_out if recorder is not None else None
        self._least = least
        self._rules = _rules()
        self._possible = only_our_modes()
        # those of the caller see what is kept; those that the model sets (checkpoints) expect autograd's own
        self._hooks = saving_hooks()
        is_alone.prepare()

    def step(self, call: FunctionCall, *, carries: bool = False) -> Step | None:
        """Return the lean step of a call; None where it is to be left to autograd.

        Parameters
        ----------
        call
            The call.
        carries
            Whether there is an inverse layer for the step to carry out.
        """
        rule = self._rules.get(call.function)
        if rule is None:
            return None
        found = None
        if self._possible and call.args:
            with torch._C.DisableTorchFunction():  # a look at a tensor is no function of the model's
                found = self._step(rule, call, carries)
        if found is None and self.pixels.any:
            self.pixels.restore_in(call.args, call.kwargs)
        return found

    def _step(self, rule: Rule, call: FunctionCall, carries: bool) -> Step | None:
        x = call.args[0]
        if type(x) is not Tensor or not x.requires_grad or not torch.is_grad_enabled() or not (count := x.numel()):
            return None
        if count < self._least and not carries and not self.pixels.holds(x):
            self.left = True
            return None
        if x.device.type not in ("cpu", "cuda") or x.layout != torch.strided or not x.is_floating_point():
            return None
        if is_watched(x) or saving_hooks() != self._hooks:
            return None
        return self._in_order(rule(x, call), rule, x, call)

    def _in_order(self, step: Step | None, rule: Rule, x: Tensor, call: FunctionCall) -> Step | None:
        """Return the step for maps that lie pixel by pixel, where they do or are to; else the step that was found."""
        pixels = self.pixels
        taken = None
        if isinstance(step, convolutions.Convolution):
            taken = pixels.convolution(step, x)
        elif step is not None and pixels.holds(x) and pixels.takes(step, x):
            taken = step
        if taken is not None:
            taken.by_pixels = True
            return taken
        if step is None or not pixels.holds(x):
            return step
        pixels.restore(x)
        return rule(x, call)

    def meets(self, function: Any, args: Any, kwargs: Any) -> bool:
        """Have what a function is about to be given laid out as it would be, unless a step takes it as it lies.

        Returns
        -------
        bool
            Whether it is a sum of maps that lie pixel by pixel, whose result does so, too.
        """
        return function not in _of_any_order() and self.pixels.meets(function, args, kwargs)

    def apply(self, step: Step, call: FunctionCall, site: SiteCall | None = None) -> Any:
        """Run a call with its lean step in the model's graph, or with a site's inverse layer for its derivative."""
        self.used = True
        kept = step.kept
        output = _Lean.apply(call.args[0], step, call, site)
        self.pixels.follow(step, call.args[0], output)
        if self.recorder is not None:
            self.recorder.step(call, step, kept, site, output)
        return output


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
            if step.by_pixels and is_plain(signal) and (laid := by_pixels(signal)) is not signal:
                signal, alone = laid, not torch.is_grad_enabled()
            carried = step.back(signal, kept, alone) if site is None else step.carried(site.layer, signal, kept, alone)
        if carried is None and site is not None:
            with site.step_of(step, kept):
                (carried,) = site.carry_all(signals)
        return carried, None, None, None
