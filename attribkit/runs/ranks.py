"""The processes of one run, as ``torchrun`` starts them."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from attribkit._processes import process_group

__all__ = ["Ranks", "joined", "ranks"]

T = TypeVar("T")

_PATIENCE = timedelta(days=30)
"""A rank may wait long for a slower one; of one that died, torchrun or its closed connection tells at once."""

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Ranks:
    """The processes that share the work.

    Attributes
    ----------
    rank, count
        This one's number, and how many there are.
    local
        How many of them are on this machine.
    """

    rank: int = 0
    count: int = 1
    local: int = 1

    @property
    def leads(self) -> bool:
        """Whether this one keeps the store's index."""
        return self.rank == 0

    def wait(self) -> None:
        """Wait until all are here."""
        self.told(None)

    def told(self, value: T) -> T:
        """Return what the first one says, to all.

        Raises
        ------
        RuntimeError
            One of the others died.
        """
        if self.count == 1:
            return value
        held: list[Any] = [value]
        dist.broadcast_object_list(held, src=0)
        dist.barrier()
        found: T = held[0]
        return found

    def gathered(self, value: T) -> list[T]:
        """Return what each of them gives, to all, in their order.

        Raises
        ------
        RuntimeError
            One of the others died.
        """
        if self.count == 1:
            return [value]
        held: list[Any] = [None] * self.count
        dist.all_gather_object(held, value)
        return held


def joined() -> Ranks:
    """Return the processes that are joined already; this one alone, where none are."""
    if not dist.is_available() or not dist.is_initialized():
        return Ranks()
    return Ranks(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


@contextmanager
def ranks() -> Iterator[Ranks]:
    """Join the processes that ``torchrun`` started, where it did.

    Only a few words go between them, by gloo, whatever the maps are computed on. A process group that is there already
    (nccl too) is used as it is.
    """
    if (dist.is_available() and dist.is_initialized()) or int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield joined()
        return
    _end_with_parent()
    with process_group("gloo", _PATIENCE):
        yield joined()


def own_device(device: torch.device) -> torch.device:
    """Return this process's own GPU where any was asked for, else the device itself."""
    if str(device) != "cuda" or "LOCAL_RANK" not in os.environ:
        return device
    chosen = torch.device("cuda", int(os.environ["LOCAL_RANK"]) % max(1, torch.cuda.device_count()))
    torch.cuda.set_device(chosen)
    return chosen


def _end_with_parent() -> None:
    """Ask Linux to end this process when torchrun is killed: what it had begun must not go on beside its restart."""
    if sys.platform != "linux" or "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    parent = os.getppid()
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    except (OSError, AttributeError):
        return
    if os.getppid() != parent:  # it was killed in between
        os.kill(os.getpid(), signal.SIGKILL)
