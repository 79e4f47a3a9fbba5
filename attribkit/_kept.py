"""Reading safetensors files that attribkit wrote: JSON in their metadata, tensors beside it; whoever made them.

Nothing in such a file is executed. Its header is checked against its length before anything is allocated by it.
"""

from __future__ import annotations

import json
import os
import struct
from typing import TYPE_CHECKING, Any

from attribkit.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["DAMAGE", "KeptError", "one_line", "read_header", "read_kept", "read_tensors"]

MAX_HEADER = 64 * 2**20
"""A header says a few hundred bytes of each tensor: a longer one is refused."""

DAMAGE = (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError, RecursionError)
"""What reading numbers and texts out of JSON raises where they are others than they should be."""


class KeptError(InputError):
    """A file is damaged, or none of those that attribkit writes; the message is the reason alone."""


def one_line(what: object, most: int = 200) -> str:
    """Return a message in one line that is not too long."""
    text = " ".join(str(what).split()) or type(what).__name__
    return text if len(text) <= most else f"{text[: most - 1]}…"


def read_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the JSON that a safetensors file keeps in its metadata under ``attribkit``.

    Raises
    ------
    KeptError
        The file is no safetensors file, or keeps no such JSON.
    OSError
        It cannot be read.
    """
    return _read(path, tensors=False)[0]


def read_kept(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return what `read_header` does, and the tensors.

    Raises
    ------
    KeptError, OSError
        As for `read_header`.
    """
    return _read(path, tensors=True)


def read_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Return a safetensors file's metadata as it is, and the tensors; see `read_header` for the errors."""
    return _read(path, tensors=True, parsed=False)


def _read(path: str | os.PathLike[str], tensors: bool, parsed: bool = True) -> tuple[dict[str, Any], dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    with open(path, "rb") as raw:  # says what is missing or a folder, as the library does not
        size, start = os.fstat(raw.fileno()).st_size, raw.read(8)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    if not 2 <= length <= min(MAX_HEADER, size - 8):
        raise KeptError(f"is cut off, or no safetensors file: {size:,} bytes, of which its header takes {length:,}")
    try:
        with safe_open(path, framework="pt") as file:
            found: Any = file.metadata() or {}
            if parsed:
                found = json.loads(found["attribkit"])
                if not isinstance(found, dict):
                    raise KeptError(f"its metadata is a {type(found).__name__}, not a table")
            held = {name: file.get_tensor(name) for name in file.keys()} if tensors else {}  # noqa: SIM118
    except KeptError:
        raise
    except KeyError as error:
        raise KeptError(f"its metadata lacks {one_line(error)}") from error
    except (SafetensorError, RuntimeError, *DAMAGE) as error:
        raise KeptError(one_line(error)) from error
    return found, held
