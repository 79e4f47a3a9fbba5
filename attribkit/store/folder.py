"""The folder of a store: made, checked, and removed again where nothing came of it."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from attribkit.store.errors import StoreError
from attribkit.store.layout import INDEX, LOCK, RANKS, SHARDS

__all__ = ["StoreFolder", "writing"]


class StoreFolder:
    """Makes a store's folder.

    Parameters
    ----------
    path
        Where; what lies there already stays.

    Raises
    ------
    StoreError
        It cannot be written into.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        for name in (INDEX, LOCK, SHARDS, RANKS):
            if (path / name).is_symlink():  # what is written through it would lie elsewhere
                raise StoreError(f"{path / name}: is a link; what belongs to a store are files and folders of its own")
        self.made: list[Path] = []
        self.new = not (path / INDEX).exists()
        try:
            with writing(path, begun=False):
                for folder in (path, path / SHARDS, path / RANKS):
                    self._make(folder)
                handle, name = tempfile.mkstemp(prefix=".attribkit-", dir=path / SHARDS)
                os.close(handle)
                os.unlink(name)
        except BaseException:
            self.discard()
            raise

    def discard(self) -> None:
        """Remove what was made, where the store was not there before; what others put there stays."""
        if self.new:
            for name in (INDEX, f"{INDEX}-journal", LOCK):
                with suppress(OSError):
                    (self.path / name).unlink()
        for folder in reversed(self.made):
            if folder in (self.path / SHARDS, self.path / RANKS):
                shutil.rmtree(folder, ignore_errors=True)
                continue
            try:
                folder.rmdir()
            except OSError:
                break
        self.made.clear()

    def _make(self, folder: Path) -> None:
        if folder.is_dir():
            return
        if folder.parent != folder:
            self._make(folder.parent)
        folder.mkdir(exist_ok=True)
        self.made.append(folder)


@contextmanager
def writing(path: Path, begun: bool = True) -> Iterator[None]:
    """Turn what a full disk or a folder that cannot be written raises into a `StoreError` that names the store.

    Parameters
    ----------
    path
        The store.
    begun
        Whether something may be finished already, which the message then speaks of.
    """
    try:
        yield
    except (OSError, ValueError, sqlite3.Error) as error:
        if isinstance(error, StoreError):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        rest = "; what is finished is kept, and the same command goes on from there" if begun else ""
        raise StoreError(f"the output folder {str(path)!r} cannot be written: {reason}{rest}") from error
