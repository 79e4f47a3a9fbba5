"""The folder an evaluation writes into: all of its files or none."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from attribkit.errors import AttribkitError


class OutputError(AttribkitError, OSError):
    """The output folder cannot be written into."""


class Output:
    """A folder that was found writable; see `opened`."""

    def __init__(self, path: Path, staging: Path) -> None:
        self.path, self._staging, self.written = path, staging, False

    def write(self, files: Mapping[str, bytes]) -> None:
        """Write files by name, beside each other first and then into their places.

        Raises
        ------
        OutputError
            One cannot be written, or a folder stands in its place; nothing is replaced then.
        """
        try:
            for name, content in files.items():
                (self._staging / name).write_bytes(content)
                if (self.path / name).is_dir():
                    raise IsADirectoryError(f"{name} is a folder")
            for name in files:
                os.replace(self._staging / name, self.path / name)
        except OSError as error:
            raise _error(self.path, error) from error
        self.written = True


@contextmanager
def opened(path: Path) -> Iterator[Output]:
    """Make a folder ready before the work begins, and leave it as it was unless something was written.

    Raises
    ------
    OutputError
        It cannot be made, or not written into.
    """
    made: list[Path] = []
    staging = None
    out = None
    try:
        try:
            for folder in reversed([path, *path.parents]):
                if not folder.exists():
                    folder.mkdir()
                    made.append(folder)
            staging = Path(tempfile.mkdtemp(prefix=".attribkit-", dir=path))
        except (OSError, ValueError) as error:
            raise _error(path, error) from error
        out = Output(path, staging)
        yield out
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
        if out is None or not out.written:
            for folder in reversed(made):
                try:
                    folder.rmdir()
                except OSError:  # someone else put something there
                    break


def _error(path: Path, error: Exception) -> OutputError:
    reason = getattr(error, "strerror", None) or str(error)
    return OutputError(f"the output folder {str(path)!r} cannot be written: {reason}")
