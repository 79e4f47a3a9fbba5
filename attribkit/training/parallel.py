"""Several processes, started by ``torchrun``: what a run needs of torch.distributed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from attribkit._processes import process_group

__all__ = ["Team", "team"]


@dataclass(frozen=True)
class Team:
    """The processes of a run.

    Attributes
    ----------
    rank, size
        This process's number, and how many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def summed(self, values: Tensor, device: torch.device) -> Tensor:
        """Return the sum of the processes' values, float64, on the CPU."""
        if self.size == 1:
            return values
        held = values.to(device)
        dist.all_reduce(held)
        return held.cpu()

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.size > 1:
            dist.barrier()

    def wrapped(self, network: nn.Module, device: torch.device) -> nn.Module:
        """Return the network, its gradients averaged over the processes in every backward pass."""
        if self.size == 1:
            return network
        return nn.parallel.DistributedDataParallel(network, device_ids=[device] if device.type == "cuda" else None)


@contextmanager
def team(device: torch.device | None) -> Iterator[tuple[Team, torch.device]]:
    """Join the processes that ``torchrun`` started, if it did; the device becomes this process's own.

    Parameters
    ----------
    device
        Where to train; None takes CUDA where there is one.
    """
    chosen: torch.device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Team(), chosen
        return
    if chosen == torch.device("cuda"):
        chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(chosen)
    with process_group("nccl" if chosen.type == "cuda" else "gloo"):
        yield Team(dist.get_rank(), dist.get_world_size()), chosen
