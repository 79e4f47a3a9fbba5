"""Joining the processes that ``torchrun`` started, each time anew."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

import torch.distributed as dist

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

__all__ = ["process_group"]

_PAUSE = 0.02
"""Seconds between two looks at who has come."""


@contextmanager
def process_group(backend: str, timeout: timedelta | None = None) -> Iterator[None]:
    """Join the processes that ``torchrun`` started until the context ends.

    A process group that is there already is used as it is, and stays.

    When torchrun starts the processes again after a failure, its key-value store still holds where those before them
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
        One of the others died, or did not come in time.
    """
    if dist.is_initialized():
        yield
        return
    # not there where torch was built without torch.distributed
    from torch.distributed.distributed_c10d import PrefixStore, default_pg_timeout
    from torch.distributed.rendezvous import rendezvous

    patience = timeout or default_pg_timeout
    store, rank, count = next(rendezvous("env://", timeout=patience))
    store = PrefixStore(agreed_name(PrefixStore("attribkit", store), rank, count, patience), store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=timeout)
    try:
        yield
    finally:
        dist.destroy_process_group()


def agreed_name(store: Store, rank: int, count: int, timeout: timedelta) -> str:
    """Return a new name that all processes of this attempt agree on, whatever earlier ones left in the store.

    torchrun's own count of its restarts will not do: on several machines each counts for itself. The first process
    chooses the name, and tells it to each of the others under a word that this one has just made up: so what is heard
    is never what was told before. It answers the dead too, whose words it finds, and goes on until each of the living
    has heard it.

    Raises
    ------
    RuntimeError
        Others did not come in time; it names them.
    """
    if rank != 0:
        word = uuid.uuid4().hex
        store.set(f"word {rank}", word)
        try:
            store.wait([f"name for {word}"], timeout)
        except dist.DistStoreError as error:
            raise _absent([0], count, timeout) from error
        name: str = store.get(f"name for {word}").decode()
        store.set(f"{name} heard by {rank}", "")
        return name
    name = uuid.uuid4().hex
    missing = list(range(1, count))
    deadline = time.monotonic() + timeout.total_seconds()
    while missing:
        for other in missing:
            if store.check([f"word {other}"]):
                store.set(f"name for {store.get(f'word {other}').decode()}", name)
        missing = [other for other in missing if not store.check([f"{name} heard by {other}"])]
        if missing and time.monotonic() > deadline:
            raise _absent(missing, count, timeout)
        time.sleep(_PAUSE if missing else 0.0)
    return name


def _absent(ranks: list[int], count: int, timeout: timedelta) -> RuntimeError:
    """Return the error for processes that did not come."""
    named = ", ".join(map(str, ranks))
    return RuntimeError(f"{len(ranks)} of {count} processes did not join within {timeout}: rank {named}")
