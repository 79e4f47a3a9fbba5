"""Memory: for what is kept, and for large results."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import mmap
import sys
import threading
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

#: Bytes from which on allocators take a tensor's memory from the system anew, and hand it back at once, page by page:
#: that costs several times as much as what is then written there, and a fifth of a convolution's own time.
LARGE = 1 << 25

#: Bytes below which a map of its own is not worth its pages.
_SMALL = 1 << 16

#: Bytes between the beginnings of tensors in a room, as between those of torch's own.
_APART = 64


class _Room(threading.local):
    """Memory for what a pass keeps, where it is known beforehand how much that will be."""

    def __init__(self) -> None:
        self.left: Tensor | None = None
        self.asked = 0


_room = _Room()


@contextlib.contextmanager
def room(size: int) -> Iterator[Callable[[], int]]:
    """Have what this thread keeps lie together, in memory that is taken before any activation's.

    Parameters
    ----------
    size
        Bytes; what finds no place there lies in maps of its own.

    Yields
    ------
    callable
        Returns the bytes that would have been enough up to now.
    """
    before = _room.left, _room.asked
    _room.left, _room.asked = torch.empty(size, dtype=torch.uint8), 0
    try:
        yield lambda: _room.asked
    finally:
        _room.left, _room.asked = before


def kept(shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """Return a tensor on the CPU for small integers that stay until the way back.

    It lies in a room, or in a memory map of its own: between the activations, which come and go, it would split the
    heap, and with every one that stays the process would grow by an activation, as if these were kept.
    """
    size = shape.numel() * dtype.itemsize
    if size < _SMALL:
        return torch.empty(shape, dtype=dtype)
    if (left := _room.left) is not None:
        apart = -(-size // _APART) * _APART
        _room.asked += apart
        if len(left) >= apart:
            _room.left = left[apart:]
            # by way of numpy each tensor has a version of its own
            return torch.from_numpy(left[:size].numpy()).view(dtype).view(shape)
    return mapped(size, filled=True).view(dtype).view(shape)


def mapped(size: int, *, filled: bool = False) -> Tensor:
    """Return uint8 [size] in a memory map of its own, whose pages are there from the start if it will be ``filled``."""
    if sys.platform == "win32":
        return torch.frombuffer(mmap.mmap(-1, size), dtype=torch.uint8)
    populate = getattr(mmap, "MAP_POPULATE", 0) if filled else 0
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | populate)
    return torch.frombuffer(memory, dtype=torch.uint8)


def is_large(tensor: Tensor) -> bool:
    """Tell whether a tensor's memory, or that of one of its size, is worth asking for large pages."""
    return tensor.device.type == "cpu" and tensor.numel() * tensor.element_size() >= LARGE


def on_large_pages(fresh: Tensor) -> Tensor:
    """Return a tensor nothing has been written to yet, its memory on large pages where it is large and there are any.

    The system then hands out a five-hundredth as many of them. The memory stays torch's own, and torch's to free.
    """
    if is_large(fresh) and (advise := _advise()) is not None:
        start = fresh.data_ptr()
        first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        size = (start + fresh.numel() * fresh.element_size() - first) // mmap.PAGESIZE * mmap.PAGESIZE
        advise(first, size, mmap.MADV_HUGEPAGE)
    return fresh


@functools.cache
def _advise() -> Callable[[int, int, int], int] | None:
    """Return the C library's ``madvise``, None where the system has no large pages to ask for."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    try:
        function = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return None
    function.argtypes, function.restype = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int], ctypes.c_int
    return function
