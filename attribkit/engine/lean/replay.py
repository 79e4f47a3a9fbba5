"""Going through the steps of a noted pass in a row, up and back, without the model's code."""

from __future__ import annotations

import copy
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_unflatten

from attribkit.engine.lean import store
from attribkit.engine.lean.pixels import by_pixels
from attribkit.engine.lean.standin import is_dense, is_plain
from attribkit.engine.lean.step import Step
from attribkit.engine.splice import FunctionCall

if TYPE_CHECKING:
    from attribkit.engine.inverse import SiteCall
    from attribkit.engine.sites import Site


@dataclass(slots=True)
class Stepped:
    """A step; with ``step`` None a sum of two values, or one laid out anew."""

    call: FunctionCall
    step: Step | None
    kept: tuple[Tensor, ...]
    site: SiteCall | None
    inputs: tuple[int, ...]
    output: int
    done: tuple[int, ...] = ()  # the values that are not needed afterwards


class Reshaped(Step):
    """Another shape for the same numbers; the result may lie where the input does.

    Parameters
    ----------
    shape
        Of the input.
    """

    def __init__(self, shape: torch.Size) -> None:
        self.shape = shape

    def back(self, signal: Tensor, kept: tuple[Tensor, ...], alone: bool = False) -> Tensor:
        """Give the signal the input's shape."""
        return signal.reshape(self.shape)


@dataclass(slots=True)
class Called:
    """A function of the last part; among its arguments are `Value`."""

    function: Any
    leaves: list[Any]
    spec: Any
    output: int


@dataclass(frozen=True, slots=True)
class Value:
    """Stands for a value, by its number."""

    number: int


@dataclass(slots=True)
class _Held:
    """A signal, and how many values' signals it is."""

    signal: Tensor
    users: list[int]

    def is_alone(self) -> bool:
        return self.users[0] == 1


@dataclass
class Replay:
    """A pass that has been noted.

    Attributes
    ----------
    steps : list
        From the input to the cut.
    cut : int
        The value at which the last part begins.
    layout : tuple of int
        Its strides there.
    tail : list
        The last part.
    output : int
        The model's output.
    sites : list of Site
        Of the pass.
    rewritten : int
        How many of them carry the signal otherwise than by their ordinary derivative.
    room : int
        Bytes of what the steps keep, known after the first time.
    """

    steps: list[Stepped]
    cut: int
    layout: tuple[int, ...]
    tail: list[Called]
    output: int
    sites: list[Site]
    rewritten: int
    room: int = 0
    mine: Any = field(default_factory=threading.Lock)

    def up(self, x: Tensor) -> Made:
        """Go up from an input [N, C, H, W] of the noted one's size; what a step or function raises comes out."""
        # a copy, as the model gets one: it may be written to, and lies where torch lets tensors begin
        found: dict[int, Tensor] = {0: x.detach().clone()}
        taken: list[tuple[Stepped, Step | None, tuple[Tensor, ...]]] = []
        with torch.no_grad(), torch._C.DisableTorchFunction(), store.room(self.room) as asked:
            for each in self.steps:
                step, call = None, each.call
                kept: tuple[Tensor, ...] = ()
                inputs = [found[number] for number in each.inputs]
                if each.step is None:
                    output = call.function(*inputs)
                else:
                    # what a step notes of its output is this pass's own
                    step = copy.copy(each.step)
                    step.kept = each.kept
                    made = FunctionCall(call.operation, call.function, (inputs[0], *call.args[1:]), call.kwargs)
                    output = made.run() if step.in_place else step.run(made)
                    if each.site is None or not each.site.layer.signal_only:
                        step.keep(output)
                    kept, step.kept = step.kept, ()
                del inputs
                found[each.output] = output
                for number in each.done:
                    del found[number]
                taken.append((each, step, kept))
            value = found.pop(self.cut)
            self.room = asked()
        del output
        if value.stride() != self.layout:  # whoever comes first got it laid out as torch would have
            value = value.contiguous()
        leaf = value.requires_grad_()
        with torch.enable_grad():
            values = {self.cut: leaf.clone()}  # which may be written to
            for called in self.tail:
                leaves = [values[part.number] if isinstance(part, Value) else part for part in called.leaves]
                args, kwargs = tree_unflatten(leaves, called.spec)
                values[called.output] = called.function(*args, **kwargs)
        return Made(values[self.output], leaf, self.cut, taken, _versions(taken))


@dataclass
class Made:
    """A pass made again, on its way up.

    Attributes
    ----------
    output : Tensor
        The model's output, in autograd's graph from ``leaf`` on.
    leaf : Tensor
        Where the signal leaves that graph.
    cut : int
        The value that the leaf is.
    taken : list
        The steps, with what each has kept.
    versions : list of int
        How often what has been kept had been written to.
    """

    output: Tensor | None
    leaf: Tensor | None
    cut: int
    taken: list[tuple[Stepped, Step | None, tuple[Tensor, ...]]]
    versions: list[int]

    def is_as_it_was(self) -> bool:
        """Tell whether nobody has written to what has been kept."""
        return self.versions == _versions(self.taken)

    def back(self, arrived: list[Tensor]) -> Tensor | None:
        """Carry a signal, which is taken out of a list, from the leaf to the input; None where none arrives there."""
        self.output = self.leaf = None
        signals = {self.cut: _Held(arrived.pop(), [2])}  # what autograd hands over may be anybody's
        with torch.no_grad(), torch._C.DisableTorchFunction():
            while self.taken:
                each, step, kept = self.taken.pop()
                if each.output in each.inputs:  # laid out anew, as the signal will be
                    continue
                held = signals.pop(each.output, None)
                if held is None:
                    continue
                if step is None:
                    held.users[0] += len(each.inputs) - 1
                    for number in each.inputs:
                        _arrive(signals, number, held)
                    continue
                carried = _carried(each, step, kept, held)
                if isinstance(step, Reshaped):  # in the same memory
                    held = _Held(carried, held.users)
                elif carried is not held.signal:
                    held.users[0] -= 1
                    held = _Held(carried, [1])
                _arrive(signals, each.inputs[0], held)
        found = signals.pop(0, None)
        return None if found is None else found.signal


def _versions(taken: list[tuple[Stepped, Step | None, tuple[Tensor, ...]]]) -> list[int]:
    return [tensor._version for _, _, kept in taken for tensor in kept]


def _arrive(signals: dict[int, _Held], number: int, held: _Held) -> None:
    """Have a signal arrive at a value, where another may be."""
    there = signals.get(number)
    if there is None:
        signals[number] = held
        return
    held.users[0] -= 1
    if there.is_alone() and there.signal.stride() == held.signal.stride() and is_dense(there.signal):
        there.signal.add_(held.signal)
    else:
        there.users[0] -= 1
        signals[number] = _Held(there.signal + held.signal, [1])


def _carried(each: Stepped, step: Step, kept: tuple[Tensor, ...], held: _Held) -> Tensor:
    """Carry a signal back through a step, as `attribkit.engine.lean.record` does."""
    signal, alone, site = held.signal, held.is_alone(), each.site
    if step.by_pixels and is_plain(signal) and (laid := by_pixels(signal)) is not signal:
        signal, alone = laid, True
    if site is None:
        return step.back(signal, kept, alone)
    carried = step.carried(site.layer, signal, kept, alone)
    if carried is None:
        with site.step_of(step, kept):
            (carried,) = site.carry_all((held.signal,))
    return carried  # type: ignore[return-value]
