"""Work that is watched while it goes on, and can be stopped."""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from attribkit import progress

T = TypeVar("T")


class Stopped(Exception):
    """Somebody stopped the work."""


@dataclass(frozen=True)
class Step:
    """How far the work has come: ``done`` of ``total`` parts (0: not known yet), after ``seconds``."""

    done: int
    total: int
    seconds: float


class Job(Generic[T]):
    """One piece of work in a thread of its own.

    Parameters
    ----------
    work
        What to do. Its loops over `attribkit.progress.track` are what is watched, and where it can be stopped.
    """

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._stop = threading.Event()
        self._finished = threading.Event()
        self._began = time.monotonic()
        self._done, self._total = 0, 0
        self._result: T | None = None
        self._error: BaseException | None = None
        context = contextvars.copy_context()
        self._thread = threading.Thread(target=context.run, args=(self._run,), daemon=True, name="attribkit-app-job")

    def stop(self) -> None:
        """Ask the work to end at its next step."""
        self._stop.set()

    def steps(self, every: float = 0.1) -> Iterator[Step]:
        """Do the work, and say how far it has come until it ends.

        Parameters
        ----------
        every
            Seconds between two steps.
        """
        self._thread.start()
        try:
            while not self._finished.wait(every):
                yield self.step()
            yield self.step()
        finally:
            self.stop()  # nobody watches any more

    def step(self) -> Step:
        """Return how far the work has come."""
        return Step(self._done, self._total, time.monotonic() - self._began)

    def result(self) -> T:
        """Return what the work returned, or raise what it raised.

        Raises
        ------
        Stopped
            It was stopped.
        """
        self._finished.wait()
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value]

    def _run(self) -> None:
        try:
            with progress.told(self):
                self._result = self._work()
        except BaseException as error:
            self._error = error
        finally:
            self._finished.set()

    # -- what `attribkit.progress.track` calls ---------------------------------------------------------------------

    def add_task(self, description: str, *, total: float | None) -> int:
        """Begin a loop: the innermost one of known length is what is shown."""
        self._check()
        if total is not None and total > 1:
            self._done, self._total = 0, int(total)
            return 1
        return 0

    def advance(self, task_id: int) -> None:
        """Note one more step of a loop."""
        self._check()
        if task_id:
            self._done += 1

    def remove_task(self, task_id: int) -> None:
        """End a loop."""

    def _check(self) -> None:
        if self._stop.is_set():
            raise Stopped
