"""Trials of ways to compute what torch computes: which of them gives the same bits, found out with noise.

Rounding depends on the order of a sum, and that on sizes, on the number of threads, on the machine and on how memory is
aligned: no rule foretells it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from attribkit.engine.lean.shortcuts import Settings

#: ``way(maps, weight, settings)``; None where it has to be torch's after all.
Way = Callable[[Tensor, Tensor, "Settings"], "Tensor | None"]


class Trial:
    """Which way to go for one case of sizes.

    At the first call torch's, since a trial would take twice as long; the trial comes with the second.

    Parameters
    ----------
    torchs
        Torch's way.
    ways
        Others, the best first.
    settings
        What all of them are given.
    maps, weight
        The sizes of the tensors.
    """

    def __init__(
        self, torchs: Way, ways: tuple[Way, ...], settings: Settings, maps: torch.Size, weight: torch.Size
    ) -> None:
        self._torchs, self._ways, self._settings, self._sizes = torchs, ways, settings, (maps, weight)
        self._calls = 0
        self._found: Way | None = None

    def way(self) -> Way | None:
        """Count a call; return the way that it is to go, None for torch's."""
        self._calls += 1
        if self._calls == 2:
            self._found = self._run()
        return self._found

    def _run(self) -> Way | None:
        generator = torch.Generator().manual_seed(0)  # not the caller's
        maps, weight = (
            torch.rand(size, generator=generator, dtype=torch.float32, device="cpu").sub_(0.5) for size in self._sizes
        )
        expected = self._torchs(maps, weight, self._settings)
        for way in self._ways:
            found = way(maps, weight, self._settings)
            if found is not None and expected is not None and torch.equal(found, expected):
                return way
        return None


def way_for(
    torchs: Way, ways: tuple[Way, ...], settings: Settings, maps: Tensor, weight: Tensor, *, library: bool
) -> Way | None:
    """Return the way that these tensors are to go, None for torch's.

    Parameters
    ----------
    torchs
        Torch's way.
    ways
        Others, the best first.
    settings
        What all of them are given.
    maps, weight
        float32 on the CPU.
    library
        Whether torch computes with oneDNN.
    """
    if any(tensor.data_ptr() % 64 for tensor in (maps, weight)):  # the noise begins where torch lets tensors begin
        return None
    return _trial(torchs, ways, settings, maps.shape, weight.shape, torch.get_num_threads(), library).way()


@functools.lru_cache(maxsize=256)
def _trial(
    torchs: Way,
    ways: tuple[Way, ...],
    settings: Settings,
    maps: torch.Size,
    weight: torch.Size,
    threads: int,
    library: bool,
) -> Trial:
    return Trial(torchs, ways, settings, maps, weight)
