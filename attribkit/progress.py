"""Progress bars: shown by the front door, fed by whoever loops. In a terminal by rich, in a notebook as HTML."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol, TypeVar

from attribkit import _notebook

__all__ = ["Bars", "shown", "told", "track"]

T = TypeVar("T")
_local = threading.local()

REDRAW_SECONDS = 0.1
"""Between two pictures of a bar in a notebook: each is a message to the browser."""


class Bars(Protocol):
    """What shows bars: rich's `Progress` is of this kind."""

    def add_task(self, description: str, *, total: float | None) -> Any:
        """Add a bar and return what it is called."""

    def advance(self, task_id: Any) -> None:
        """Note that one more is done."""

    def remove_task(self, task_id: Any) -> None:
        """Take a bar away."""


@contextmanager
def shown(show: bool, description: str = "") -> Iterator[None]:
    """Show the loops of `track` in this thread as progress bars until the context ends: on stderr, or in the notebook.

    Afterwards they are gone.
    """
    if not show or getattr(_local, "bars", None) is not None:
        yield
        return
    with _bars() as bars, told(bars, description):
        yield


@contextmanager
def told(bars: Bars, description: str = "") -> Iterator[None]:
    """Tell ``bars`` of the loops of `track` in this thread until the context ends, in place of whoever was told before.

    Parameters
    ----------
    bars
        What is told; an exception that it raises ends the loop.
    description
        What a loop does that does not say so itself.
    """
    before = getattr(_local, "bars", None), getattr(_local, "description", "")
    _local.bars, _local.description = bars, description
    try:
        yield
    finally:
        _local.bars, _local.description = before


def _bars() -> AbstractContextManager[Bars]:
    if _notebook.running():
        return NotebookBars()
    from rich.console import Console
    from rich.progress import Progress

    return Progress(console=Console(stderr=True), transient=True)


class NotebookBars:
    """Bars as HTML in the output of a notebook's cell, without widgets. A context manager: at its end they are gone."""

    def __init__(self) -> None:
        self._output = _notebook.Output()
        self._tasks: dict[int, tuple[str, int, int | None]] = {}
        self._added = 0
        self._drawn = float("-inf")

    def __enter__(self) -> NotebookBars:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._drawn > float("-inf"):
            self._output.show("", "")

    def add_task(self, description: str, *, total: float | None) -> int:
        """Add a bar; its description is in rich's markup, as everywhere."""
        from rich.text import Text

        self._added += 1
        self._tasks[self._added] = (Text.from_markup(description).plain, 0, None if total is None else int(total))
        self._draw()
        return self._added

    def advance(self, task_id: int) -> None:
        """Note that one more is done."""
        description, done, total = self._tasks[task_id]
        self._tasks[task_id] = (description, done + 1, total)
        self._draw()

    def remove_task(self, task_id: int) -> None:
        """Take a bar away."""
        del self._tasks[task_id]

    def _draw(self) -> None:
        now = time.monotonic()
        if now - self._drawn < REDRAW_SECONDS:
            return
        from attribkit.report.notebook import progress_html

        self._drawn = now
        bars = list(self._tasks.values())
        text = "\n".join(f"{description} {done} of {total or '?'}" for description, done, total in bars)
        self._output.show(progress_html(bars), text)


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
    bars: Bars | None = getattr(_local, "bars", None)
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
