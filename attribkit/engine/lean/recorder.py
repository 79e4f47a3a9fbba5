"""Noting what becomes of a model's input in one forward pass."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.utils._pytree import tree_flatten
from torch.utils.weak import TensorWeakRef

from attribkit.engine.lean.pixels import sums
from attribkit.engine.lean.replay import Called, Replay, Reshaped, Stepped, Value
from attribkit.engine.ops import functions_named
from attribkit.engine.splice import FunctionCall, is_in_place, written_by

if TYPE_CHECKING:
    from attribkit.engine.inverse import SiteCall
    from attribkit.engine.lean.step import Step
    from attribkit.engine.ops import Operation
    from attribkit.engine.sites import Site


@functools.cache
def _shapes() -> frozenset[Any]:
    return frozenset(functions_named("flatten reshape view"))


#: Elements, put together, of what operations of the last part may take in that could do without keeping it.
MOST = 1 << 17


def _alike(*tensors: Tensor) -> bool:
    return len({(tensor.shape, tensor.dtype, tensor.device) for tensor in tensors}) == 1


class Recorder:
    """Notes what becomes of a model's input in one pass.

    Parameters
    ----------
    parameters, buffers
        The model's own tensors.

    Attributes
    ----------
    failed : bool
        Whether something happened that cannot be made again.
    """

    def __init__(self, parameters: Iterable[Tensor], buffers: Iterable[Tensor]) -> None:
        self.failed = False
        self._parameters = set(map(id, parameters))
        self._own = self._parameters | set(map(id, buffers))
        self._views: set[int] = set()  # values of which there is one that lies in the same memory
        self._values: dict[int, tuple[TensorWeakRef, int]] = {}
        self._count = 0
        self._steps: list[Stepped] = []
        self._tail: list[Called] = []
        self._cut: int | None = None
        self._layout: tuple[int, ...] = ()
        self._stepped = False
        self._taken_in = 0

    def begin(self, x: Tensor) -> Tensor:
        """Note the model's input and return it."""
        self._note(x)
        return x

    def _note(self, tensor: Tensor) -> int:
        number = self._count
        self._count += 1
        self._values[id(tensor)] = (TensorWeakRef(tensor), number)
        return number

    def _number(self, tensor: Any) -> int | None:
        """Return the number of the value that a tensor holds; None where it holds none that is known."""
        ref, number = self._values.get(id(tensor), (None, 0))
        return number if ref is not None and ref() is tensor else None

    def step(
        self,
        call: FunctionCall,
        step: Step,
        kept: tuple[Tensor, ...],
        site: SiteCall | None,
        output: Any,
    ) -> None:
        """Note a step that has been taken.

        Parameters
        ----------
        call, step, site
            What has been called, and how it is carried back.
        kept
            What the step had kept before.
        output
            What it has returned.
        """
        x, *others = call.args
        number = self._number(x)
        if self._tail:  # autograd has the last part, and keeps what passes through
            self._taken_in += x.numel()
            self.failed |= site is not None or self._taken_in > MOST
            return
        self._stepped = True
        foreign = any(
            isinstance(each, Tensor) and id(each) not in self._own for each in (*others, *call.kwargs.values())
        )
        if number is None or foreign or type(output) is not Tensor or (step.in_place and number in self._views):
            self.failed = True
            return
        if site is not None:
            site.module = None  # it may know its model, and would keep it alive
        plain = FunctionCall(call.operation, call.function, (None, *others), call.kwargs)
        self._steps.append(Stepped(plain, step, kept, site, (number,), self._note(output)))

    def laid_out(self, tensor: Tensor) -> None:
        """Note that a tensor has been laid out channel by channel."""
        number = self._number(tensor)
        if number is None:
            self.failed = True
        elif not self._tail:
            call = FunctionCall(None, Tensor.contiguous, (), {})  # type: ignore[arg-type]
            self._steps.append(Stepped(call, None, (), None, (number,), number))

    def function(self, operation: Operation | None, function: Any, args: Any, kwargs: Any, output: Any) -> None:
        """Note any function that has been called; nothing where that was a step."""
        if self._stepped:
            self._stepped = False
            return
        if self.failed:
            return
        if self._hands_on(operation, args, kwargs, output):
            return
        if type(output) is not Tensor or self._writes_to_the_model(operation, function, args, kwargs):
            self.failed = True
            return
        numbers = [self._number(each) for each in args]
        first, others = numbers[0] if numbers else None, numbers[1:]
        if self._tail or first is None:
            self._last(operation, function, args, kwargs, output)
        elif function in sums() and len(args) == 2 and not kwargs and others[0] is not None and _alike(*args, output):
            call = FunctionCall(None, function, (), {})  # type: ignore[arg-type]
            self.failed |= output is args[0] and first in self._views
            self._steps.append(Stepped(call, None, (), None, (first, others[0]), self._note(output)))
        elif function in _shapes() and not any(isinstance(each, Tensor) for each in args[1:]):
            call = FunctionCall(None, function, (None, *args[1:]), kwargs)  # type: ignore[arg-type]
            made = self._note(output)
            self._steps.append(Stepped(call, Reshaped(args[0].shape), (), None, (first,), made))
            self._views |= {first, made}
        else:
            self._last(operation, function, args, kwargs, output)

    def _hands_on(self, operation: Operation | None, args: Any, kwargs: Any, output: Any) -> bool:
        """Tell whether a call was a dropout's that drops nothing."""
        if operation is None or operation.kind != "dropout" or not args or output is not args[0]:
            return False
        return operation.bind(args, kwargs).get("training", operation.bind(args, kwargs).get("train")) is False

    def _writes_to_the_model(self, operation: Operation | None, function: Any, args: Any, kwargs: Any) -> bool:
        """Tell whether a call may change what is none of its pass's own values."""
        if is_in_place(operation, function, args, kwargs):
            return any(self._number(target) is None for target in written_by(function, args, kwargs))
        if operation is None or operation.kind not in ("batch_norm", "norm"):
            return False
        bound = operation.bind(args, kwargs)  # statistics are changed unseen
        return bool(bound.get("training", False) or bound.get("use_input_stats", False)) or "0" in bound

    def _last(self, operation: Operation | None, function: Any, args: Any, kwargs: Any, output: Tensor) -> None:
        leaves, spec = tree_flatten((args, kwargs))
        own = {called.output for called in self._tail}
        for place, leaf in enumerate(leaves):
            if not isinstance(leaf, Tensor):
                continue
            number = self._number(leaf)
            if number is None:
                # what gets hold of a buffer may write to it unseen, but for operations that are known
                self.failed |= id(leaf) not in self._parameters and (operation is None or id(leaf) not in self._own)
                continue
            leaves[place] = Value(number)
            if number in own:
                continue
            if self._cut is None:
                self._cut, self._layout = number, leaf.stride()
            elif number != self._cut:
                self.failed = True
        self._tail.append(Called(function, leaves, spec, self._note(output)))

    def made(self, output: Any, sites: list[Site], rewritten: int) -> Replay | None:
        """Return the pass that ended with an output, None where it cannot be made again."""
        if self.failed:
            return None
        number = self._number(output)
        if number is None or not self._steps:
            return None
        if self._cut is None:
            if self._tail:
                return None
            self._cut, self._layout = number, output.stride()
        steps = [each for each in self._steps if each.output <= self._cut]
        if steps[-1:] == [] or steps[-1].output != self._cut:
            return None
        last: dict[int, int] = {}
        for place, each in enumerate(steps):
            last.update(dict.fromkeys((*each.inputs, each.output), place))
        del last[self._cut]
        for value, place in last.items():
            steps[place].done += (value,)
        return Replay(steps, self._cut, self._layout, self._tail, number, sites, rewritten)
