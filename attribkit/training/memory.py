"""Memory that is freed stays with the process: large tensors are then not zeroed anew by the kernel in every step."""

from __future__ import annotations

import ctypes
import sys

__all__ = ["keep_freed_memory"]

# Parameters of glibc's mallopt(3).
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Tell glibc's malloc to keep freed blocks, whatever their size, for the life of this process.

    By default every block above 32 MB is mapped for its tensor and unmapped after it, and each step touches all its
    pages for the first time. `attribkit train` calls this; the library does not, since it holds for the whole process.

    Returns
    -------
    bool
        Whether it took effect: False where the C library is another.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, 2**31 - 1))
