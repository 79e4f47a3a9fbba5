"""Reading one listed image."""

from __future__ import annotations

import gzip
import io
import os
import stat
import zlib
from typing import IO, Any

from PIL import Image

from attribkit.errors import ImageError
from attribkit.images import decode_image, read_image
from attribkit.runs.listing import MAX_MEMBER
from attribkit.store.layout import Place

__all__ = ["Opener"]


class Opener:
    """Reads listed images; it keeps the tar file read last open, for a packed one can only be read forwards."""

    def __init__(self) -> None:
        self._name = ""
        self._file: IO[bytes] | None = None
        self._pid = os.getpid()

    def __del__(self) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"_name": "", "_file": None, "_pid": 0}

    def read(self, place: Place) -> Image.Image:
        """Return an image as `attribkit.images.read_image` does.

        Raises
        ------
        ImageError
            If it cannot be read; the message does not begin with its name.
        """
        try:
            if place.problem is not None:
                raise ImageError(place.problem)
            if not place.size:
                return read_image(place.file)
            return decode_image(io.BytesIO(self._bytes(place)), place.image)
        except ImageError as error:
            message = str(error)
            for name in (place.image, place.file):
                message = message.removeprefix(f"{name}: ")
            raise ImageError(message) from error

    def close(self) -> None:
        """Close the tar file that is open."""
        if self._file is not None:
            self._file.close()
            self._file, self._name = None, ""

    def _bytes(self, place: Place) -> bytes:
        if not 0 < place.size <= MAX_MEMBER or place.start < 0:
            raise ImageError(f"its place in the tar file is out of range: {place.size} bytes from {place.start} on")
        try:
            # a file that was open before a fork would be read, and its place moved, by both processes
            if self._file is None or self._name != place.file or self._pid != os.getpid():
                self.close()
                self._pid = os.getpid()
                if not stat.S_ISREG(os.stat(place.file).st_mode):  # opening a pipe would wait for ever
                    raise ImageError("the tar file is a pipe, socket or device")
                opening: Any = open if place.file.lower().endswith(".tar") else gzip.open
                self._file, self._name = opening(place.file, "rb"), place.file
            self._file.seek(place.start)
            found = self._file.read(place.size)
        except (OSError, EOFError, zlib.error) as error:
            self.close()
            raise ImageError(f"cannot be read: {getattr(error, 'strerror', None) or error}") from error
        if len(found) != place.size:
            raise ImageError("is cut off: the tar file ends within it")
        return found
