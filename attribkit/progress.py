"""Progress bars: shown by the front door, fed by whoever loops."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")
_local = threading.local()


@contextmanager
def shown(show: bool, description: str = "") -> Iterator[None]:
    """Show the loops of `track` in this thread as progress bars on stderr until the context ends."""
    if not show or getattr(_local, "bars", None) is not None:
        yield
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bars:
        _local.bars, _local.description = bars, description
        try:
            yield
        finally:
            _local.bars = None


def track(items: Sequence[T] | Iterable[T], description: str = "", total: int | None = None) -> Iterator[T]:
    """Iterate, advancing a progress bar where one is shown.

    Parameters
    ----------
    items
        What to go through.
    description
        What the loop does.
    total
        How many items there are, where ``items`` has no length.
    """
    bars: Any = getattr(_local, "bars", None)
    if bars is None:
        yield from items
        return
    count = total if total is not None else len(items) if isinstance(items, Sequence) else None
    task = bars.add_task(description or getattr(_local, "description", ""), total=count)
    try:
        for item in items:
            yield item
            bars.advance(task)
    finally:
        bars.remove_task(task)
