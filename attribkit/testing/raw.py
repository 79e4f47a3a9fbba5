"""Calling a method as it is: no cloning, casting or restoring stands between a check and the method's own faults."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from attribkit.engine.outputs import observe
from attribkit.method import Method
from attribkit.targets import PendingTarget, Target


class CheckError(AssertionError):
    """A claim does not hold; the message says what was found."""


def resolve(model: nn.Module, inputs: Tensor, target: Any) -> Target:
    """Fix each sample's class or unit on the inputs, as the front door does before a method runs."""
    pending = PendingTarget(target, len(inputs))
    with torch.no_grad():
        return pending.resolve(observe(model, inputs.clone(), pending.layer, {}), model)


def call(method: Method, model: nn.Module, inputs: Tensor, target: Target, **options: Any) -> Tensor:
    """Return the map of ``method.attribute`` itself, detached.

    Raises
    ------
    CheckError
        It returned something other than a tensor, or a pair of a tensor and a dict of tensors.
    """
    values: Any = method.attribute(model, inputs, target, **options)
    returned = values
    if isinstance(returned, tuple):
        if len(returned) != 2 or not isinstance(returned[1], dict):
            raise CheckError(f"attribute() returned a tuple of {len(returned)}; a pair of a tensor and a dict is meant")
        values, extras = returned
        wrong = [key for key, value in extras.items() if not isinstance(value, Tensor)]
        if wrong:
            raise CheckError(f"attribute() returned extras that are no tensors: {', '.join(map(str, wrong))}")
    if not isinstance(values, Tensor):
        raise CheckError(f"attribute() returned {type(values).__name__}, not a tensor")
    return values.detach()


def explain(method: Method, model: nn.Module, inputs: Tensor, target: Any, **options: Any) -> Tensor:
    """Resolve the target and return the method's map of it."""
    return call(method, model, inputs, resolve(model, inputs, target), **options)


def extras(method: Method, model: nn.Module, inputs: Tensor, target: Any, **options: Any) -> dict[str, Tensor]:
    """Return what the method returns beside its map."""
    returned: Any = method.attribute(model, inputs, resolve(model, inputs, target), **options)
    return dict(returned[1]) if isinstance(returned, tuple) else {}


def largest(*tensors: Tensor) -> float:
    """Return the largest absolute value."""
    return max((float(t.abs().max()) for t in tensors if t.numel()), default=0.0)


def require_equal(
    found: Tensor, expected: Tensor, what: str, *, rtol: float = 1e-7, atol: float = 1e-10, names: str = "expected"
) -> None:
    """Raise `CheckError` unless two maps agree, each difference measured against the largest value.

    Parameters
    ----------
    found, expected
        Tensors of one shape.
    what
        What it means when they differ: the message's beginning.
    rtol, atol
        Tolerance relative to the largest absolute value of both, and absolute.
    names
        What the second is called in the message.
    """
    if found.shape != expected.shape:
        raise CheckError(f"{what}: shape {tuple(found.shape)}, {names} {tuple(expected.shape)}")
    wide = [t.to(torch.float64) for t in (found, expected)]
    difference = (wide[0] - wide[1]).abs()
    allowed = atol + rtol * largest(*wide)
    if bool((difference <= allowed).all()):
        return
    at = tuple(int(i) for i in torch.unravel_index(difference.nan_to_num(nan=torch.inf).argmax(), difference.shape))
    raise CheckError(
        f"{what}: at {list(at)} it is {float(found[at]):.10g}, {names} {float(expected[at]):.10g} "
        f"({int((~(difference <= allowed)).sum())} of {found.numel()} values differ)"
    )


@contextmanager
def own_generators() -> Iterator[None]:
    """Give what runs inside its own states of the global random generators; put the caller's back afterwards."""
    import random

    import numpy as np

    states = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])  # noqa: NPY002
