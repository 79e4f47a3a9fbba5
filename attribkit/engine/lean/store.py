"""Memory for what is kept."""

from __future__ import annotations

import mmap
import sys

import torch
from torch import Tensor

#: Bytes below which a map of its own is not worth its pages.
_SMALL = 1 << 16


def empty(shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """Return a tensor on the CPU for small integers that stay until the way back.

    It lies in a memory map of its own: between the activations, which come and go, it would split the heap, and with
    every one that stays the process would grow by an activation, as if these were kept.
    """
    size = shape.numel() * dtype.itemsize
    if size < _SMALL:
        return torch.empty(shape, dtype=dtype)
    if sys.platform == "win32":
        memory = mmap.mmap(-1, size)
    else:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(memory, dtype=dtype).view(shape)
