"""What a method makes of one batch, and the batches of one call joined."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attribkit.engine.invert import invert
from attribkit.engine.outputs import observe
from attribkit.errors import MethodError
from attribkit.method import InverseMethod, Method
from attribkit.targets import PendingTarget


@dataclass
class Explained:
    """A batch explained, or several of them; the fields are those of `Attribution`."""

    values: Tensor
    scores: Tensor
    target: Any
    extras: dict[str, Tensor]


def by_table(
    model: nn.Module, inputs: Tensor, method: InverseMethod, pending: PendingTarget, guard: Callable[[], None]
) -> Explained:
    """Explain a batch by a table of inverse layers, whose own forward pass resolves the target too."""
    found = invert(model, inputs, pending, method.table(), unit_signal=method.unit_signal, guard=guard)
    if found.target is None:
        raise MethodError("the target was not resolved")
    return Explained(found.values, found.scores, found.target.describe(), {})


def by_call(
    model: nn.Module, inputs: Tensor, method: Method, pending: PendingTarget, options: dict[str, Any]
) -> Explained:
    """Resolve the target by a pass of its own, call the method and check what it returns.

    Raises
    ------
    MethodError
        It is no map of the inputs, or no pair of one and a dict of tensors.
    """
    with torch.no_grad():
        observed = observe(model, inputs, pending.layer, pending.forward_kwargs)
        target = pending.resolve(observed, model)
        scores = target.read(observed).detach()
    # a copy: what a method does to its inputs is its own affair
    returned: Any = method.attribute(model, inputs.detach().clone(), target, **options)
    if isinstance(returned, tuple) and len(returned) != 2:
        raise MethodError(
            f"method {method.name!r} returned {len(returned)} things; a map, or a map and a dict of extras"
        )
    values, extras = returned if isinstance(returned, tuple) else (returned, {})
    if not isinstance(extras, dict) or not all(isinstance(value, Tensor) for value in extras.values()):
        raise MethodError(f"method {method.name!r} returned extras that are no dict of tensors")
    if not isinstance(values, Tensor) or values.shape != inputs.shape:
        got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise MethodError(f"method {method.name!r} returned {got} for inputs of shape {tuple(inputs.shape)}")
    values = values.detach().to(device=inputs.device, dtype=inputs.dtype)
    return Explained(values, scores, target.describe(), {key: value.detach() for key, value in extras.items()})


def joined(parts: Sequence[Explained]) -> Explained:
    """Join batches along the sample dimension; an extra that is not per sample is kept from the first batch."""
    first = parts[0]
    extras = {}
    for key, value in first.extras.items():
        per_sample = all(part.extras[key].ndim > 0 and len(part.extras[key]) == len(part.values) for part in parts)
        extras[key] = torch.cat([part.extras[key] for part in parts]) if per_sample else value
    return Explained(
        torch.cat([part.values for part in parts]),
        torch.cat([part.scores for part in parts]),
        torch.cat([part.target for part in parts]) if isinstance(first.target, Tensor) else first.target,
        extras,
    )
