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

    Parameters
    ----------
    case
        The case.
    """

    def __init__(self, case: Case) -> None:
        self._case = case
        self._calls = 0
        self._tried = False
        self._found: Way | None = None

    def way(self) -> Way | None:
        """Count a call; return the way that it is to go, None for torch's.

        The first call goes torch's, since a trial would take twice as long; the trial comes with the second.
        """
        self._calls += 1
        return self.tried() if self._calls > 1 else self._found

    def tried(self) -> Way | None:
        """Return the way that a call is to go, found out now if it is not known."""
        if not self._tried:
            self._found, self._tried = self._run(), True
        return self._found

    def _run(self) -> Way | None:
        case = self._case
        generator = torch.Generator().manual_seed(0)  # not the caller's
        maps, weight = (noise(size, generator) for size in (case.maps, case.weight))
        expected = case.torchs(maps, weight, case.settings)
        for way in case.ways:
            found = way(maps, weight, case.settings)
            if found is not None and expected is not None and torch.equal(found, expected):
                return way
        return None


def noise(size: torch.Size, generator: torch.Generator) -> Tensor:
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
    return trial_of(torchs, ways, settings, maps.shape, weight.shape, library=library).way()


def trial_of(
    torchs: Way, ways: tuple[Way, ...], settings: Settings, maps: torch.Size, weight: torch.Size, *, library: bool
) -> Trial:
    """Return the trial for tensors of these sizes, in memory that torch has allocated."""
    return _trial(Case(torchs, ways, settings, maps, weight, torch.get_num_threads(), library))
