"""Ctrl-C between two steps rather than within one, so that what is saved is whole."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["Interrupted", "noticed"]


class Interrupted:
    """Whether SIGINT or SIGTERM came."""

    def __init__(self) -> None:
        self.came = False


@contextmanager
def noticed() -> Iterator[Interrupted]:
    """Note the first SIGINT or SIGTERM instead of obeying it; a second one is obeyed. Only in the main thread."""
    state = Interrupted()
    if threading.current_thread() is not threading.main_thread():
        yield state
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: FrameType | None) -> None:
        if state.came:
            raise KeyboardInterrupt
        state.came = True

    for number in before:
        signal.signal(number, note)
    try:
        yield state
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
