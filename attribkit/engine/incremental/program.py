"""A program and what it takes to trust it: nothing in it is any image's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attribkit.engine.incremental.errors import Differs, NotReplayable, Rounded
from attribkit.engine.incremental.graph import Graph
from attribkit.engine.incremental.plan import Plan
from attribkit.engine.incremental.record import Ref

#: How far scores may be from the model's own, as a share of the largest value returned beside them.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-11}

#: From how many times the tolerance on a difference is no matter of rounding: random networks of many layers, batch
#: norms of next to no variance, differ from themselves in float64 by up to thirty times.
WRONG = 100


@dataclass(frozen=True)
class Program:
    """What a model does with occluded copies of an image, for the windows of one grid.

    Attributes
    ----------
    plan : Plan
    compared : list of int
        Which of the leaves that the model returns are compared with its own.
    tolerance : float
        How far they may be from them, as a share of the largest.
    """

    plan: Plan
    compared: list[int]
    tolerance: float

    def compare(self, leaves: list[Any], row: int, expected: list[Tensor], which: int) -> None:
        """Compare one row of the leaves with what the model itself returned for it.

        Raises
        ------
        NotReplayable
            They differ: `Rounded` or `Differs` says by how much.
        """
        for compared, theirs in zip(self.compared, expected, strict=True):
            if not isinstance(self.plan.graph.returns[compared], Ref):
                raise NotReplayable("results cannot be compared with the model's own")
            if not theirs.is_floating_point():
                continue
            size = theirs.abs()
            scale = float(size[size.isfinite()].amax()) if bool(size.isfinite().any()) else 0.0
            mine, own = leaves[compared][row], theirs[which]
            # what is infinite, or not a number, must be so in both: some models rule classes out that way
            alike = (mine == own) | (mine.isnan() & own.isnan())
            errors = (mine - own).abs().masked_fill_(alike, 0)
            if not bool((errors <= self.tolerance * scale).all()):
                rounded = bool((errors <= WRONG * self.tolerance * scale).all())
                raise (Rounded if rounded else Differs)(
                    f"results differ from the model's own by {float(errors.amax()):.2g} (the largest is {scale:.2g})"
                )


def tolerance(graph: Graph) -> float:
    """Return how far results may be from the model's own: as far as the coarsest of a program's numbers let them.

    Raises
    ------
    NotReplayable
        It computes in numbers too coarse to compare.
    """
    numbers = {info.dtype for info in graph.values.values() if info.dtype.is_floating_point or info.dtype.is_complex}
    reals = {dtype.to_real() for dtype in numbers}
    coarse = sorted(map(str, reals - TOLERANCE.keys()))
    if coarse:
        raise NotReplayable(f"the forward pass computes in {coarse[0]}, which is too coarse to compare scores in")
    return max(TOLERANCE[dtype] for dtype in reals)
