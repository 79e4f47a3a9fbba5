"""What a call may leave behind, and faults that make it leave in a hurry."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from attribkit.engine.ops import Vocabulary
from attribkit.testing.switches import states

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_state_dict_hooks",
    "_is_full_backward_hook",
)
_vocabulary = Vocabulary()


def model_state(model: nn.Module) -> dict[str, Any]:
    """Return everything about a model that a call must leave as it was, by a name that a message can quote."""
    state: dict[str, Any] = {}
    for path, module in model.named_modules():
        where = f"module {path!r}" if path else "the model"
        state[f"the identity of {where}"] = id(module)
        state[f"the class of {where}"] = type(module)
        state[f"the training flag of {where}"] = module.training
        for name in _HOOKS:
            hooks: Any = getattr(module, name, None)
            state[f"{name} of {where}"] = list(hooks.items()) if isinstance(hooks, dict) else hooks
        for name, value in vars(module).items():
            if not name.startswith("_") and isinstance(value, (bool, int, float, str, tuple, type(None))):
                state[f"the attribute {name} of {where}"] = value
        state[f"the attributes of {where}"] = sorted(vars(module))
    tensors: list[tuple[str, str, Tensor]] = [("parameter", *pair) for pair in model.named_parameters()]
    tensors += [("buffer", *pair) for pair in model.named_buffers()]
    for kind, path, tensor in tensors:
        state[f"the identity of {kind} {path!r}"] = id(tensor)
        state.update(_tensor_state(tensor, f"{kind} {path!r}"))
    return state


def _tensor_state(tensor: Tensor, name: str) -> dict[str, Any]:
    grad = tensor.grad if tensor.is_leaf else None
    return {
        f"the values of {name}": tensor.detach().clone(),
        f"requires_grad of {name}": tensor.requires_grad,
        f"the .grad of {name}": grad.detach().clone() if grad is not None else None,
        f"the hooks of {name}": len(tensor._backward_hooks or ()),
    }


def inputs_state(inputs: Tensor) -> dict[str, Any]:
    """Return everything about the inputs that a call must leave as it was."""
    return {**_tensor_state(inputs, "the inputs"), "is_leaf of the inputs": inputs.is_leaf}


def generator_state() -> dict[str, Any]:
    """Return the states of the random generators and what else is global."""
    numpy = np.random.get_state(legacy=False)  # noqa: NPY002
    return {
        "torch's generator": torch.get_rng_state(),
        "the generator of `random`": random.getstate(),
        "numpy's generator": repr((numpy["state"], numpy["has_gauss"], numpy["gauss"])),
        **states(),
        "inference mode": torch.is_inference_mode_enabled(),
        "the stack of torch function modes": torch._C._len_torch_function_stack(),
    }


def seed_generators(seed: int) -> None:
    """Put the random generators into a state that no method leaves them in: one that seeds them is seen to."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002


def changed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Return what differs between two states, in words."""
    found = [name for name in before if name not in after or not _same(before[name], after[name])]
    return found + [name for name in after if name not in before]


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other)
    return bool(type(one) is type(other) and one == other)


class Fault(RuntimeError):
    """An exception thrown into a model's forward or backward pass."""


class Interrupt(KeyboardInterrupt):
    """The same as Ctrl-C."""


class Tripwire(TorchFunctionMode):
    """Counts calls of the operations that can be sites and throws at one of them.

    Parameters
    ----------
    at
        At which call, from 0; None: only count.
    error
        What to throw.
    backward
        Whether to throw when a gradient arrives at that call's result, not at the call itself.
    """

    def __init__(self, at: int | None = None, error: type[BaseException] = Fault, *, backward: bool = False) -> None:
        super().__init__()
        self.at = at
        self.error = error
        self.backward = backward
        self.calls = 0
        self.thrown = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in _vocabulary.functions:
            return func(*args, **kwargs)
        here = self.calls == self.at
        self.calls += 1
        if here and not self.backward:
            self.throw()
        result = func(*args, **kwargs)
        if here and isinstance(result, Tensor) and result.requires_grad and not result.is_leaf:
            result.register_hook(self.throw)  # type: ignore[no-untyped-call]
        return result

    def throw(self, grad: Any = None) -> None:
        """Throw."""
        self.thrown = True
        raise self.error(f"a fault thrown on purpose at operation {self.at}")


class Turns:
    """Lets threads take turns, operation by operation, in an order that a seed draws.

    Parameters
    ----------
    count
        How many threads there are.
    seed
        Draws the order.
    """

    def __init__(self, count: int, seed: int) -> None:
        self._random = random.Random(seed)
        self._running = list(range(count))
        self._turn = self._random.choice(self._running)
        self._changed = threading.Condition()

    def wait(self, own: int) -> None:
        """Pass the turn on and wait for the next one; not for long, since whoever has it may itself wait for a lock."""
        with self._changed:
            if self._turn == own:
                self._turn = self._random.choice(self._running)
                self._changed.notify_all()
            self._changed.wait_for(lambda: self._turn == own, timeout=0.5)

    @contextmanager
    def taken_by(self, own: int) -> Iterator[None]:
        """Run thread number ``own``, a turn for each of its operations."""
        try:
            with _TurnMode(self, own):
                yield
        finally:
            with self._changed:
                self._running.remove(own)
                if self._running and self._turn == own:
                    self._turn = self._random.choice(self._running)
                self._changed.notify_all()


class _TurnMode(TorchFunctionMode):
    def __init__(self, turns: Turns, own: int) -> None:
        super().__init__()
        self.turns = turns
        self.own = own

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _vocabulary.functions:
            self.turns.wait(self.own)
        return func(*args, **(kwargs or {}))


@contextmanager
def watched(model: nn.Module, inputs: Tensor, report: Callable[[list[str]], None]) -> Iterator[None]:
    """Compare model, inputs and generators before and after what runs inside; hand over what changed."""
    before = {**model_state(model), **inputs_state(inputs), **generator_state()}
    try:
        yield
    finally:
        report(changed(before, {**model_state(model), **inputs_state(inputs), **generator_state()}))
