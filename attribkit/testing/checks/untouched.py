"""What every method is held to: nothing is left behind, whether the call returns or raises."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from attribkit.method import Method
from attribkit.testing import traces
from attribkit.testing.raw import CheckError, call, explain, own_generators, require_equal, resolve
from attribkit.testing.registry import check
from attribkit.testing.switches import own_switches

__all__ = [
    "check_fault_leaves_nothing",
    "check_generators_untouched",
    "check_inputs_untouched",
    "check_model_untouched",
]


@check(cases={})
def check_model_untouched(method: Method, model: nn.Module, inputs: Tensor, target: Any) -> None:
    """The model is left as it was: hooks, modules, flags, parameters, buffers, gradients."""
    for i, parameter in enumerate(model.parameters()):  # what a caller may have set
        parameter.requires_grad_(i % 3 != 2)
        parameter.grad = torch.full_like(parameter, 0.5) if i % 3 == 1 else None
    resolved = resolve(model, inputs, target)
    before = traces.model_state(model)
    call(method, model, inputs, resolved)
    _refuse(traces.changed(before, traces.model_state(model)), "a call")


@check(cases={})
def check_inputs_untouched(method: Method, model: nn.Module, inputs: Tensor, target: Any) -> None:
    """The inputs are left as they were: values, requires_grad and .grad."""
    with_grad = inputs.clone().requires_grad_()
    with_grad.grad = torch.full_like(inputs, 0.5)
    for x in (inputs, with_grad):
        resolved = resolve(model, x.detach(), target)
        before = traces.inputs_state(x)
        call(method, model, x, resolved)
        _refuse(traces.changed(before, traces.inputs_state(x)), "a call")


@check(cases={})
def check_generators_untouched(method: Method, model: nn.Module, inputs: Tensor, target: Any) -> None:
    """Global state is left as it was: random generators, grad mode, default dtype, deterministic mode, threads, …

    A second time from a state that is unusual, since what is put back may only happen to be what was there.
    """
    resolved = resolve(model, inputs, target)
    for unusual in (False, True):
        with own_generators(), own_switches(unusual=unusual):
            traces.seed_generators(86_028_121 + unusual)
            before = traces.generator_state()
            call(method, model, inputs, resolved)
            left = traces.changed(before, traces.generator_state())
        _refuse(left, "a call")


@check(cases={"most": 2, "most_images": 2})
def check_fault_leaves_nothing(method: Method, model: nn.Module, inputs: Tensor, target: Any) -> None:
    """An exception at any operation, on the way up or back, leaves nothing behind; it comes out.

    The exceptions are an error and Ctrl-C in turn; the call after them must be right. Methods that run the model many
    times get one at every operation of the first run and at some of the later ones.
    """
    resolved = resolve(model, inputs, target)
    with traces.Tripwire() as one_pass, torch.no_grad():
        model(inputs)
    with traces.Tripwire() as all_passes:
        expected = call(method, model, inputs, resolved)
    places = list(range(min(one_pass.calls, all_passes.calls)))
    later = range(len(places), all_passes.calls)
    places += later[:: max(1, len(later) // 4)] if later else []
    grad = torch.is_grad_enabled()
    for at in places:
        for backward in (False, True):
            error = (traces.Fault, traces.Interrupt)[at % 2]
            tripwire = traces.Tripwire(at, error, backward=backward)
            when = f"{error.__name__} at operation {at} {'on the way back' if backward else 'on the way up'}"
            changes: list[str] = []
            returned = False
            try:
                with traces.watched(model, inputs, changes.extend), tripwire:
                    call(method, model, inputs, resolved)
                    returned = True
            except (traces.Fault, traces.Interrupt):
                pass
            except Exception as raised:
                if not tripwire.thrown:
                    raise
                if not isinstance(raised.__cause__ or raised.__context__, (traces.Fault, traces.Interrupt)):
                    raise
            finally:
                torch.set_grad_enabled(grad)
            _refuse(changes, when)
            if tripwire.thrown and returned:
                raise CheckError(f"{when} was swallowed: the method returned a map")
    again = explain(method, model, inputs, target)
    require_equal(again, expected, "after the exceptions the map is another one", names="before")


def _refuse(changes: list[str], when: str) -> None:
    if changes:
        more = f" and {len(changes) - 3} more" if len(changes) > 3 else ""
        raise CheckError(f"{when} changed {', '.join(changes[:3])}{more}")
