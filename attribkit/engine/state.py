"""Leave no trace: whatever a call does to a model, its inputs, the generators and grad mode is undone at its end."""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor, nn

from attribkit.engine.guard import same_tensors
from attribkit.engine.intercept import paused_walks
from attribkit.engine.tree import paths_of

_lock = threading.RLock()
# module -> [calls under way, its training flag before the first of them]; entries live only while a call does
_in_eval: dict[nn.Module, list[Any]] = {}


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Run in eval mode; with several calls at once the flags come back when the last one ends.

    The flags are set one by one: ``model.eval()`` may be overridden to do more than that.
    """
    modules = list(paths_of(model))
    entered: list[nn.Module] = []
    try:
        with _lock:
            for module in modules:
                entered.append(module)
                entry = _in_eval.setdefault(module, [0, module.training])
                entry[0] += 1
                if module.training:
                    module.training = False
        yield
    finally:
        with _lock:
            for module in entered:
                entry = _in_eval.get(module, [0, module.training])
                entry[0] -= 1
                if entry[0] <= 0:
                    _in_eval.pop(module, None)
                    if module.training != entry[1]:
                        module.training = entry[1]


@contextmanager
def same_generators(device: torch.device) -> Iterator[None]:
    """Put the random generators of torch (CPU and ``device``), ``random`` and numpy back if they were advanced."""
    cpu = torch.get_rng_state()
    accelerator = _accelerator(device)
    on_device = accelerator.get_rng_state(device) if accelerator is not None else None
    python = random.getstate()
    numpy: Any = sys.modules.get("numpy")
    np_state = numpy.random.get_state(legacy=False) if numpy is not None else None
    try:
        yield
    finally:
        # only what moved is put back: another thread may be drawing from the same generators
        if not torch.equal(torch.get_rng_state(), cpu):
            torch.set_rng_state(cpu)
        if on_device is not None and not torch.equal(accelerator.get_rng_state(device), on_device):
            accelerator.set_rng_state(on_device, device)
        if random.getstate() != python:
            random.setstate(python)
        if np_state is not None and not _same_numpy_state(numpy.random.get_state(legacy=False), np_state):
            numpy.random.set_state(np_state)


def _same_numpy_state(now: dict[str, Any], before: dict[str, Any]) -> bool:
    inner_now, inner_before = now["state"], before["state"]
    if now["bit_generator"] != before["bit_generator"] or inner_now.keys() != inner_before.keys():
        return False
    gauss = ("has_gauss", "gauss")
    return all(now.get(key) == before.get(key) for key in gauss) and all(
        bool((inner_now[key] == inner_before[key]).all())
        if hasattr(inner_now[key], "all")
        else inner_now[key] == inner_before[key]
        for key in inner_now
    )


def _accelerator(device: torch.device) -> Any:
    module = getattr(torch, device.type, None) if device.type not in ("cpu", "meta") else None
    return module if module is not None and hasattr(module, "get_rng_state") else None


class _Stance:
    """The compiler's stance while calls of ours are under way; it belongs to the whole process."""

    def __init__(self) -> None:
        self.users = 0
        self.taken: Any = None


_stance = _Stance()


@contextmanager
def eager() -> Iterator[None]:
    """Run compiled code as it was written, so that its operations can be seen.

    A model may call a compiled function from anywhere, so no look at its modules could rule one out. Of several calls
    at once the first takes the stance and the last puts back the one before.
    """
    if "torch._dynamo" not in sys.modules:  # nothing is compiled
        yield
        return
    with _lock:
        if not _stance.users:
            _stance.taken = torch.compiler.set_stance("force_eager")
        _stance.users += 1
    try:
        yield
    finally:
        with _lock:
            _stance.users -= 1
            if not _stance.users:
                taken, _stance.taken = _stance.taken, None
                taken.__exit__(None, None, None)


class _Straight:
    """Stands in for torch's re-entrant checkpoint while a call of ours is under way anywhere in the process.

    Re-entrant checkpointing cannot be differentiated with respect to given inputs and would fill ``.grad``. In a thread
    of ours the checkpointed part simply runs; in all others the original does its work.
    """

    def __init__(self, original: Any) -> None:
        self.original = original
        self.users = 0
        self.local = threading.local()

    def apply(self, function: Any, preserve: Any, *args: Any) -> Any:
        if getattr(self.local, "depth", 0):
            return function(*args)
        return self.original.apply(function, preserve, *args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.original, name)


@contextmanager
def straight_through_checkpoints() -> Iterator[None]:
    """Run re-entrantly checkpointed parts of a model without checkpointing, in this thread."""
    module = torch.utils.checkpoint
    with _lock:
        current = module.CheckpointFunction
        stand_in: Any = current if isinstance(current, _Straight) else _Straight(current)
        setattr(module, "CheckpointFunction", stand_in)  # noqa: B010 (a class to the type checker)
        stand_in.users += 1
    stand_in.local.depth = getattr(stand_in.local, "depth", 0) + 1
    try:
        yield
    finally:
        stand_in.local.depth -= 1
        with _lock:
            stand_in.users -= 1
            if not stand_in.users and getattr(module, "CheckpointFunction") is stand_in:  # noqa: B009
                setattr(module, "CheckpointFunction", stand_in.original)  # noqa: B010 (a class to the type checker)


@contextmanager
def pristine(model: nn.Module, inputs: Tensor, *, at_once: bool = True) -> Iterator[Callable[[], None]]:
    """Give a call its own world: eval mode, gradients on, inference mode off; everything is put back at the end.

    Parameters
    ----------
    model
        The model about to be attributed.
    inputs
        The caller's inputs, of any shape.
    at_once
        Whether the model is put into eval mode and guarded from the beginning.

    Yields
    ------
    callable
        What does so if it has not been done: to be called before any code of the model's is.
    """
    with ExitStack() as stack:
        grad = torch.is_grad_enabled()
        stack.enter_context(paused_walks())
        stack.enter_context(torch.inference_mode(False))
        stack.callback(torch.set_grad_enabled, grad)
        stack.enter_context(torch.enable_grad())
        stack.enter_context(same_generators(inputs.device))
        guarded = False

        def guard() -> None:
            nonlocal guarded
            if not guarded:
                guarded = True
                for context in (same_tensors(model, inputs), eval_mode(model), eager(), straight_through_checkpoints()):
                    stack.enter_context(context)

        if at_once:
            guard()
        yield guard
