"""One bit an element: packing masks, and a signal's way through them, in blocks that stay in the caches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attribkit.engine.lean import store

#: Elements of a block, a multiple of 8: small enough for the caches, large enough that the loop costs nothing.
BLOCK = 1 << 19

# numpy compares, packs and unpacks several times faster than torch does on the CPU
_BY_NUMPY = (torch.float32, torch.float64)
# eight bytes of 0 or 1 in one integer, times this, have their bits in its uppermost byte, the first the highest
_GATHER = 0x8040201008040201 - (1 << 64)


def above(flat: Tensor, low: float) -> Tensor:
    """Pack where ``value > low``.

    Parameters
    ----------
    flat
        Floating point [n].
    low
        A number.

    Returns
    -------
    Tensor
        uint8 [⌈n / 8⌉], the first element in the highest bit.
    """
    return _packed(flat, lambda of, values: of.greater(values, low))


def not_at_most(flat: Tensor, low: float) -> Tensor:
    """Pack where not ``value <= low``, which is where ``value > low`` or the value is no number."""
    return _packed(flat, lambda of, values: of.less_equal(values, low)).bitwise_not_()


def between(flat: Tensor, low: float, high: float) -> Tensor:
    """Pack where ``low < value < high``."""
    return _packed(flat, lambda of, values: of.greater(values, low) & of.less(values, high))


def _packed(flat: Tensor, compared: Callable[[Any, Any], Any]) -> Tensor:
    """Pack what ``compared(library, values)`` is, where the library is numpy or torch, as the values are."""
    if flat.device.type != "cpu":
        return pack_by_torch(compared(torch, flat))
    count = len(flat)
    found = store.empty(torch.Size([-(-count // 8)]), torch.uint8)
    packed = found.numpy()
    for start in range(0, count, BLOCK):
        block = flat[start : start + BLOCK].detach()
        mask = compared(np, block.numpy()) if flat.dtype in _BY_NUMPY else compared(torch, block).numpy()
        packed[start // 8 : -(-(start + len(block)) // 8)] = np.packbits(mask)
    return found


def pack_by_torch(mask: Tensor) -> Tensor:
    """Pack booleans [n] where they are, by torch alone."""
    rest = -len(mask) % 8
    if rest:
        mask = torch.cat([mask, mask.new_zeros(rest)])
    # a byte's place in an integer of eight depends on the machine: the first is the lowest on all that torch runs on
    return ((mask.view(torch.int64) * _GATHER) >> 56).to(torch.uint8)


def unpack_by_torch(packed: Tensor, count: int) -> Tensor:
    """Return 0 or 1, uint8 [count], by torch alone."""
    shifts = torch.arange(7, -1, -1, dtype=torch.uint8, device=packed.device)
    return ((packed[:, None] >> shifts) & 1).flatten()[:count]


def unpacked(packed: Tensor, count: int) -> Tensor:
    """Return 0 or 1, uint8 [count]."""
    if packed.device.type != "cpu":
        return unpack_by_torch(packed, count)
    return torch.from_numpy(np.unpackbits(packed.numpy(), count=count))


def through(
    signal: Tensor, packed: Tensor, out: Tensor, derivative: Callable[[Tensor, Tensor, Tensor], object]
) -> None:
    """Write a signal's way through a mask into ``out``.

    Parameters
    ----------
    signal, out
        [n] of one dtype.
    packed
        The mask.
    derivative
        ``derivative(signal, mask, out)`` for a block, the mask 0 or 1 in the signal's dtype.
    """
    count = len(signal)
    block = BLOCK if signal.device.type == "cpu" else -(-count // 8) * 8
    floats = torch.empty(min(block, count), dtype=signal.dtype, device=signal.device)
    for start in range(0, count, block):
        stop = min(start + block, count)
        mask = floats[: stop - start]
        mask.copy_(unpacked(packed[start // 8 : -(-stop // 8)], stop - start))
        derivative(signal[start:stop], mask, out[start:stop])
