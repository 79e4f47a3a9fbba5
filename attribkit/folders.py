"""Folders for results: made and tried before the work, and gone again where nothing came of it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from attribkit.errors import InputError

__all__ = ["made_folder", "make_folders", "remove_empty"]


def make_folders(path: Path, made: list[Path]) -> None:
    """Make a folder with its parents, and note in ``made`` those that were not there."""
    if path.is_dir():
        return
    if path.parent != path:
        make_folders(path.parent, made)
    path.mkdir(exist_ok=True)
    made.append(path)


def remove_empty(made: list[Path]) -> None:
    """Remove the folders that `make_folders` noted, the last one first, up to one that holds something."""
    while made:
        try:
            made.pop().rmdir()
        except OSError:
            made.clear()  # someone else put something there


@contextmanager
def made_folder(path: Path, inside: str = "") -> Iterator[None]:
    """Make a folder that can be written into, and remove it again if an error comes out while it is empty.

    Parameters
    ----------
    path
        The folder; what lies there already stays.
    inside
        A folder in it, made too.

    Raises
    ------
    InputError
        It cannot be made, or not be written into.
    """
    made: list[Path] = []
    try:
        what = "made"
        try:
            make_folders(path / inside, made)
            what = "written"
            with tempfile.TemporaryFile(dir=path / inside):
                pass
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise InputError(f"the output folder {str(path)!r} cannot be {what}: {reason}") from error
        yield
    except BaseException:
        remove_empty(made)
        raise
