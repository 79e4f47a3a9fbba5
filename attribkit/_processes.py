"""Joining the processes that ``torchrun`` started, each time anew."""

from __future__ import annotations

import time
import uuid
from datetime import timedelta
from typing import TYPE_CHECKING

import torch.distributed as dist

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

__all__ = ["join_processes"]

_PAUSE = 0.02
"""Seconds between two looks at who has come."""


def join_processes(backend: str, timeout: timedelta | None = None) -> None:
    """Make the process group of the processes that ``torchrun`` started.

    When torchrun starts them again after a failure, its key-value store still holds where the processes before them
    listened, and `torch.distributed.init_process_group` by itself would let whoever comes early call the dead. So every
    attempt keeps its addresses under a name of its own.

    Parameters
    ----------
    backend
        ``"gloo"`` or ``"nccl"``.
    timeout
        How long one waits for another, now and later; None: torch's own.

    Raises
    ------
    RuntimeError
        One of the others died.
    """
    # not there where torch was built without torch.distributed
    from torch.distributed.distributed_c10d import PrefixStore, default_pg_timeout
    from torch.distributed.rendezvous import rendezvous

    store, rank, count = next(rendezvous("env://", timeout=timeout or default_pg_timeout))
    store = PrefixStore(agreed_name(PrefixStore("attribkit", store), rank, count), store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=timeout)


def agreed_name(store: Store, rank: int, count: int) -> str:
    """Return a new name that all processes of this attempt agree on, whatever earlier ones left in the store.

    torchrun's own count of its restarts will not do: on several machines each counts for itself. The first process
    chooses the name, and tells it to each of the others under a word that this one has just made up: so what is heard
    is never what was told before. It answers the dead too, whose words it finds, and goes on until each of the living
    has heard it.
    """
    if rank != 0:
        word = uuid.uuid4().hex
        store.set(f"word {rank}", word)
        name: str = store.get(f"name for {word}").decode()
        store.set(f"{name} heard by {rank}", "")
        return name
    name = uuid.uuid4().hex
    missing = list(range(1, count))
    while missing:
        for other in missing:
            if store.check([f"word {other}"]):
                store.set(f"name for {store.get(f'word {other}').decode()}", name)
        missing = [other for other in missing if not store.check([f"{name} heard by {other}"])]
        time.sleep(_PAUSE if missing else 0.0)
    return name
