"""One run at a time writes to a store."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from types import TracebackType

from attribkit.store.errors import StoreError
from attribkit.store.layout import LOCK

__all__ = ["Lock"]

PATIENCE = 5.0
"""Seconds that one waits for a run that is just ending, or being ended."""


class Lock:
    """Holds a store for this process; the system lets it go when the process ends, however it ends.

    A POSIX record lock: unlike flock's it is not inherited by the processes that load images, which outlive a killed
    run for a moment. It holds on network file systems too. Where there are none (Windows), nothing is locked.

    Parameters
    ----------
    folder
        The store.

    Raises
    ------
    StoreError
        On entering: another process holds it.
    OSError
        The lock's file cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK
        self._handle: int | None = None

    def __enter__(self) -> Lock:
        try:
            import fcntl
        except ImportError:
            return self
        self._handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                fcntl.lockf(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EAGAIN):
                    self._close()
                    raise
                if time.monotonic() > deadline:
                    who = os.pread(self._handle, 100, 0).decode("ascii", "replace").strip()
                    self._close()
                    raise StoreError(
                        f"{str(self.path.parent)!r} is being written by another run ({who or 'unknown'}): wait for it,"
                        " or start several processes of one run with torchrun"
                    ) from None
                time.sleep(0.05)
            else:
                os.truncate(self._handle, 0)
                os.pwrite(self._handle, f"process {os.getpid()} on {os.uname().nodename}\n".encode(), 0)
                return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
