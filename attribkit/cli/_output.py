"""The folder that a command writes into: all of it or nothing, and its files' names."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from attribkit.errors import AttribkitError
from attribkit.folders import make_folders, remove_empty

_LONGEST_STEM = 160  # bytes; leaves room for ".METHOD.safetensors" within a file system's usual 255


class OutputError(AttribkitError, OSError):
    """The output folder cannot be written into."""


class OutputFolder:
    """A folder whose new files appear together, when the work is done.

    Files are written into a hidden folder inside it and moved at the end by `commit`. Left without a commit, it is as
    it was: nothing written, and not there if it was not there before.

    Parameters
    ----------
    path
        The folder; it is made if it is missing, with its parents.

    Raises
    ------
    OutputError
        On entering, if it cannot be written into.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._made: list[Path] = []
        self._staging: Path | None = None

    def __enter__(self) -> OutputFolder:
        try:
            make_folders(self.path, self._made)
            self._staging = Path(tempfile.mkdtemp(prefix=".attribkit-", dir=self.path))
        except (OSError, ValueError) as error:
            self._undo()
            raise self._error(error) from error
        except BaseException:
            self._undo()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self._undo()

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """Give the path at which to write the file that will be called ``name``.

        Raises
        ------
        OutputError
            In place of an `OSError` while it is written (a full disk).
        """
        if self._staging is None:
            raise ValueError("the output folder is not open")
        try:
            yield self._staging / name
        except OSError as error:
            raise self._error(error) from error

    def commit(self) -> None:
        """Move the files to their places; those of the same name are replaced.

        Raises
        ------
        OutputError
            If a folder stands in a file's place; nothing is moved then.
        """
        if self._staging is None:
            raise ValueError("the output folder is not open")
        names = sorted(entry.name for entry in self._staging.iterdir())
        for name in names:
            if (self.path / name).is_dir():
                raise OutputError(f"{str(self.path / name)!r} is a folder: there is no room for the file of that name")
        try:
            for name in names:
                os.replace(self._staging / name, self.path / name)
        except OSError as error:
            raise self._error(error) from error
        self._made.clear()

    def _error(self, error: Exception) -> OutputError:
        reason = getattr(error, "strerror", None) or str(error)
        return OutputError(f"the output folder {str(self.path)!r} cannot be written: {reason}")

    def _undo(self) -> None:
        """Remove what was not committed."""
        if self._staging is not None:
            shutil.rmtree(self._staging, ignore_errors=True)
            self._staging = None
        remove_empty(self._made)


def check_output(path: str | os.PathLike[str]) -> None:
    """Find out before the work whether its results can be written, and leave everything as it was.

    Raises
    ------
    OutputError
        The folder cannot be made, or not be written into.
    """
    with OutputFolder(path):
        pass


def file_names(paths: Sequence[Path], methods: Sequence[str]) -> list[str]:
    """Return a name for each image's files, unique among them: the stem, or ``STEM-2``, ``-3``, … where stems collide.

    A suffix never takes the stem of another image (``a.jpg, a.png, a-2.jpg`` are ``a, a-3, a-2``). Case is ignored, as
    some file systems ignore it.

    Parameters
    ----------
    paths
        The images.
    methods
        The methods: no ``NAME.METHOD`` may occur twice either (methods' names may hold dots).
    """
    stems = [_shortened(path.stem) for path in paths]
    names: list[str | None] = [None] * len(stems)
    taken: set[str] = set()

    def take(index: int, name: str) -> bool:
        files = {name.casefold()} | {f"{name}.{method}".casefold() for method in methods}
        if files & taken:
            return False
        taken.update(files)
        names[index] = name
        return True

    later = [index for index, stem in enumerate(stems) if not take(index, stem)]
    for index in later:
        number = 2
        while not take(index, f"{stems[index]}-{number}"):
            number += 1
    return [name for name in names if name is not None]


def _shortened(stem: str) -> str:
    encoded = os.fsencode(stem)
    if len(encoded) <= _LONGEST_STEM:
        return stem
    return encoded[:_LONGEST_STEM].decode("utf-8", "ignore")
