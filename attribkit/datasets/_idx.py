"""Reading idx files, MNIST's format: a header of big-endian lengths, then bytes."""

from __future__ import annotations

import gzip
import os
import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

from attribkit.errors import ImageError

__all__ = ["read_idx"]

#: idx files that would unpack to more than this many bytes are refused.
MAX_IDX_BYTES = 4 * 2**30
# Deflate codes at best 258 bytes in 2 bits: a gzip file cannot unpack to more than about this many times its size.
_DEFLATE_LIMIT = 1033


def read_idx(path: str | os.PathLike[str]) -> npt.NDArray[np.uint8]:
    """Read an idx file of unsigned bytes, gzipped or not.

    Parameters
    ----------
    path
        The file. Its header says how many dimensions there are and how long each is.

    Returns
    -------
    numpy.ndarray
        uint8, [N] for labels, [N, H, W] for grey images.

    Raises
    ------
    ImageError
        If the file is missing, no such file, truncated, longer than its header says or would fill more than
        `MAX_IDX_BYTES`. No more is allocated than the file can hold.
    """
    name = os.fspath(path)
    try:
        with open(name, "rb") as raw:
            size = os.fstat(raw.fileno()).st_size
            zipped = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            file: Any = gzip.GzipFile(fileobj=raw) if zipped else raw
            shape = _shape(file.read(4), file, name)
            need = int(np.prod(shape, dtype=object))
            if 0 in shape[1:]:
                raise ImageError(f"{name}: its header says {' × '.join(map(str, shape))}, images without pixels")
            if need > MAX_IDX_BYTES:
                raise ImageError(
                    f"{name}: its header says {need:,} bytes of data; more than {MAX_IDX_BYTES:,} are refused"
                )
            if need > size * (_DEFLATE_LIMIT if zipped else 1):
                raise ImageError(f"{name}: truncated: its header says {need:,} bytes of data, the file has {size:,}")
            data = file.read(need + 1)
    except FileNotFoundError:
        raise ImageError(f"{name}: no such file") from None
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise ImageError(f"{name}: cannot be read, the file is damaged or truncated: {reason}") from error
    if len(data) != need:
        found = f"{len(data):,}" if len(data) < need else "more"
        raise ImageError(f"{name}: its header says {need:,} bytes of data, there are {found}")
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)


def _shape(magic: bytes, file: Any, name: str) -> tuple[int, ...]:
    if len(magic) != 4 or magic[:3] != b"\0\0\x08" or not 1 <= magic[3] <= 4:
        raise ImageError(f"{name}: is not an idx file of unsigned bytes: it begins with {magic.hex(' ') or 'nothing'}")
    lengths = file.read(4 * magic[3])
    if len(lengths) != 4 * magic[3]:
        raise ImageError(f"{name}: truncated within its header")
    return struct.unpack(f">{magic[3]}I", lengths)
