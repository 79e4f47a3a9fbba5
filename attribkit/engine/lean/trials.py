"""Trials of ways to compute what torch computes: which of them gives the same bits, found out with noise.

Rounding depends on the order of a sum, and that on sizes, on the number of threads, on the machine and on how memory is
aligned: no rule foretells it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from attribkit.engine.lean.shortcuts import Settings

#: How many numbers of noise are drawn before they are repeated: a prime, so that no two channels have the same ones.
_PERIOD = 65521

#: ``way(maps, weight, settings)``; None where it has to be torch's after all.
Way = Callable[[Tensor, Tensor, "Settings"], "Tensor | None"]


class Case(NamedTuple):
    """What a trial is for.

    Attributes
    ----------
    torchs : Way
        Torch's way.
    ways : tuple of Way
        Others, the best first.
    settings : Settings
        What all of them are given.
    maps, weight : torch.Size
        The sizes of the tensors.
    threads : int
        How many threads torch has.
    library : bool
        Whether it computes with oneDNN.
    """

    torchs: Way
    ways: tuple[Way, ...]
    settings: Settings
    maps: torch.Size
    weight: torch.Size
    threads: int
    library: bool


class Trial:
    """Which way to go in one case.

    At the first call torch's, since a trial would take twice as long; the trial comes with the second.

    Parameters
    ----------
    case
        The case.
    """

    def __init__(self, case: Case) -> None:
        self._case = case
        self._calls = 0
        self._found: Way | None = None

    def way(self) -> Way | None:
        """Count a call; return the way that it is to go, None for torch's."""
        self._calls += 1
        if self._calls == 2:
            self._found = self._run()
        return self._found

    def _run(self) -> Way | None:
        case = self._case
        generator = torch.Generator().manual_seed(0)  # not the caller's
        maps, weight = (_noise(size, generator) for size in (case.maps, case.weight))
        expected = case.torchs(maps, weight, case.settings)
        for way in case.ways:
            found = way(maps, weight, case.settings)
            if found is not None and expected is not None and torch.equal(found, expected):
                return way
        return None


def _noise(size: torch.Size, generator: torch.Generator) -> Tensor:
    """Return noise between -0.5 and 0.5: drawing every number would take as long as what is tried with them."""
    count = math.prod(size)
    drawn = torch.rand(min(count, _PERIOD), generator=generator, dtype=torch.float32, device="cpu").sub_(0.5)
    return drawn.repeat(-(-count // _PERIOD))[:count].view(size)


_trial = functools.lru_cache(maxsize=256)(Trial)


def way_for(
    torchs: Way, ways: tuple[Way, ...], settings: Settings, maps: Tensor, weight: Tensor, *, library: bool
) -> Way | None:
    """Return the way that these tensors, float32 on the CPU, are to go: see `Case`; None for torch's."""
    if any(tensor.data_ptr() % 64 for tensor in (maps, weight)):  # the noise begins where torch lets tensors begin
        return None
    return _trial(Case(torchs, ways, settings, maps.shape, weight.shape, torch.get_num_threads(), library)).way()
