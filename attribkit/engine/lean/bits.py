"""One bit an element: packing masks, and a signal's way through them, in blocks that stay in the caches."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attribkit.engine.lean import store

#: Elements of a block, a multiple of 8: small enough for the caches, large enough that the loop costs nothing, and
#: torch's threads little to wait for.
BLOCK = 1 << 19

# numpy compares, packs and unpacks several times faster than torch does on the CPU; what torch does faster is to tell
# what is zero, to widen integers and to multiply them, and that it does with all of its threads
_FLOATS = {torch.float32: np.float32, torch.float64: np.float64}
# eight bytes of 0 or 1 in one integer, times this, have their bits in its uppermost byte, the first the highest
_GATHER = 0x8040201008040201 - (1 << 64)
# what has the bits of a floating-point number of so many bytes
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


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
    return _packed(flat, ("greater", low))


def not_zero(flat: Tensor, below: float | None = None) -> Tensor:
    """Pack where a value is not 0, as what is no number is not; with ``below`` where ``value < below``, too."""
    tests = [] if below is None else [("less", below)]
    return _packed(flat, ("not_equal", 0), *tests)


def between(flat: Tensor, low: float, high: float) -> Tensor:
    """Pack where ``low < value < high``."""
    return _packed(flat, ("greater", low), ("less", high))


def _packed(flat: Tensor, *tests: tuple[str, float]) -> Tensor:
    """Pack where all tests hold: comparisons by name, torch's and numpy's alike, each with a number."""
    if flat.device.type != "cpu":
        masks = [getattr(torch, name)(flat, number) for name, number in tests]
        return pack_by_torch(functools.reduce(torch.logical_and, masks))
    count = flat.shape[0]
    if count <= BLOCK:
        return torch.from_numpy(np.packbits(_tested(flat, tests)))
    found = store.kept(torch.Size([-(-count // 8)]), torch.uint8)
    packed = found.numpy()
    for start in range(0, count, BLOCK):
        octets = np.packbits(_tested(flat[start : start + BLOCK], tests))
        packed[start // 8 : start // 8 + len(octets)] = octets
    return found


def _tested(block: Tensor, tests: tuple[tuple[str, float], ...]) -> Any:
    """Return where all tests, one or two, hold: an array of bool [n] in this thread's scratch memory."""
    masks = _scratch.masks(len(block))
    values = _array(block, _FLOATS[block.dtype]) if block.dtype in _FLOATS else None
    for mask, (name, number) in zip(masks, tests, strict=False):
        if name == "not_equal":  # to 0
            torch.from_numpy(mask).copy_(block)
        elif values is not None:
            getattr(np, name)(values, number, out=mask)
        else:
            getattr(torch, name)(block, number, out=torch.from_numpy(mask))
    return masks[0] if len(tests) == 1 else np.logical_and(masks[0], masks[1], out=masks[0])


class _Scratch(threading.local):
    """Memory for the blocks of each thread: taken anew for each mask it would cost as much as the mask itself.

    It lies outside the heap: in the midst of the activations it would keep the heap from shrinking behind them.
    """

    def __init__(self) -> None:
        self._bytes = store.mapped(8 * BLOCK)

    def masks(self, count: int) -> Any:
        """Return room for two masks, an array of bool [2, count]."""
        return self._bytes[: 2 * count].numpy().view(np.bool_).reshape(2, count)

    def integers(self, count: int, dtype: torch.dtype) -> Tensor:
        """Return room for integers [count]."""
        return self._bytes[: count * dtype.itemsize].view(dtype)


_scratch = _Scratch()


class _Memory:
    """A tensor's memory for numpy, by numpy's own protocol: `Tensor.numpy` would mark the memory as shared for good."""

    __slots__ = ("__array_interface__", "_flat")

    def __init__(self, flat: Tensor, kind: str) -> None:
        self._flat = flat
        self.__array_interface__ = {
            "version": 3,
            "shape": (flat.shape[0],),
            "typestr": kind,
            "data": (flat.data_ptr(), False),
        }


def _array(flat: Tensor, kind: Any) -> Any:
    """Return a tensor's memory [n] as an array of a dtype of the same size."""
    return np.asarray(_Memory(flat, np.dtype(kind).str))


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


def gated(signal: Tensor, packed: Tensor, out: Tensor, *, positive: bool = False) -> None:
    """Write a signal on the CPU into ``out`` where a mask is 1, and 0 elsewhere.

    Parameters
    ----------
    signal, out
        [n] of one floating dtype; they may be the same tensor.
    packed
        The mask.
    positive
        Whether to write max(signal, 0) instead of the signal.
    """
    # as integers, times 1 or 0: what is no number, or infinite, or a signed zero passes as it is, or leaves nothing
    kind, octets, count = _INTEGERS[signal.element_size()], packed.numpy(), signal.shape[0]
    values, results = signal.view(kind), out.view(kind)
    for start in range(0, count, BLOCK):
        stop = min(start + BLOCK, count)
        factors = _scratch.integers(stop - start, kind)
        factors.copy_(torch.from_numpy(np.unpackbits(octets[start // 8 : -(-stop // 8)], count=stop - start)))
        torch.mul(values[start:stop], factors, out=results[start:stop])
        if positive:
            torch.clamp_min(out[start:stop], 0, out=out[start:stop])


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
    count = signal.shape[0]
    block = BLOCK if signal.device.type == "cpu" else -(-count // 8) * 8
    floats = torch.empty(min(block, count), dtype=signal.dtype, device=signal.device)
    for start in range(0, count, block):
        stop = min(start + block, count)
        mask = floats[: stop - start]
        mask.copy_(unpacked(packed[start // 8 : -(-stop // 8)], stop - start))
        derivative(signal[start:stop], mask, out[start:stop])
