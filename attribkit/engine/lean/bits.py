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

#: Elements of a block, a multiple of 8: small enough for the caches, large enough that the loop costs nothing.
BLOCK = 1 << 18

# numpy compares, packs and unpacks several times faster than torch does on the CPU
_FLOATS = {torch.float32: np.float32, torch.float64: np.float64}
# eight bytes of 0 or 1 in one integer, times this, have their bits in its uppermost byte, the first the highest
_GATHER = 0x8040201008040201 - (1 << 64)
# what has the bits of a floating-point number of so many bytes
_INTEGERS = {2: np.int16, 4: np.int32, 8: np.int64}


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


def not_at_most(flat: Tensor, low: float) -> Tensor:
    """Pack where not ``value <= low``, which is where ``value > low`` or the value is no number."""
    return _packed(flat, ("less_equal", low), invert=True)


def between(flat: Tensor, low: float, high: float) -> Tensor:
    """Pack where ``low < value < high``."""
    return _packed(flat, ("greater", low), ("less", high))


def _packed(flat: Tensor, *tests: tuple[str, float], invert: bool = False) -> Tensor:
    """Pack where all tests hold, or where not: comparisons by name, torch's and numpy's alike, each with a number."""
    if flat.device.type != "cpu":
        masks = [getattr(torch, name)(flat, number) for name, number in tests]
        found = pack_by_torch(functools.reduce(torch.logical_and, masks))
        return found.bitwise_not_() if invert else found
    count = flat.shape[0]
    library, values, room = np, None, _room.masks(min(BLOCK, count))  # type: Any, Any, Any
    if flat.dtype in _FLOATS:
        values = _array(flat, _FLOATS[flat.dtype])
    else:
        library, values, room = torch, flat, torch.from_numpy(room)
    if count <= BLOCK:
        return torch.from_numpy(_octets(library, values, tests, room, invert))
    found = store.kept(torch.Size([-(-count // 8)]), torch.uint8)
    packed = found.numpy()
    for start in range(0, count, BLOCK):
        octets = _octets(library, values[start : start + BLOCK], tests, room, invert)
        packed[start // 8 : start // 8 + len(octets)] = octets
    return found


def _octets(library: Any, block: Any, tests: tuple[tuple[str, float], ...], room: Any, invert: bool) -> Any:
    """Return the bits of a block, uint8, tested by numpy or torch in the room for two masks."""
    mask, more = room[0, : block.shape[0]], room[1, : block.shape[0]]
    for number, (name, bound) in enumerate(tests):
        getattr(library, name)(block, bound, out=more if number else mask)
        if number:
            library.logical_and(mask, more, out=mask)
    octets = np.packbits(mask)
    return np.invert(octets, out=octets) if invert else octets


class _Room(threading.local):
    """Memory for the blocks of each thread: taken anew for each mask it would cost as much as the mask itself.

    It lies outside the heap: in the midst of the activations it would keep the heap from shrinking behind them.
    """

    def __init__(self) -> None:
        self._bytes: Any = store.mapped(8 * BLOCK).numpy()

    def masks(self, count: int) -> Any:
        """Return room for two masks, bool [2, count]."""
        return self._bytes[: 2 * count].view(np.bool_).reshape(2, count)

    def integers(self, count: int, kind: Any) -> Any:
        """Return room for integers [count]."""
        return self._bytes[: count * np.dtype(kind).itemsize].view(kind)


_room = _Room()


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
    # bit by bit: what is no number, or infinite, or a signed zero passes as it is
    kind = _INTEGERS[signal.element_size()]
    masks, octets, count = _all_or_nothing(kind), packed.numpy(), signal.shape[0]
    block = _room.integers(min(BLOCK, -(-count // 8) * 8), kind)
    rows = block.reshape(-1, 8)
    results = _array(out, kind)
    by_torch = positive and signal.dtype not in _FLOATS
    passing = results if by_torch or signal is out else _array(signal, kind)
    values = _array(signal, _FLOATS[signal.dtype]) if positive and not by_torch else None
    for start in range(0, count, BLOCK):
        stop = min(start + BLOCK, count)
        eights = octets[start // 8 : -(-stop // 8)]
        if by_torch:
            torch.clamp_min(signal[start:stop], 0, out=out[start:stop])
        elif values is not None:  # a step of torch's in every block would wait for torch's threads each time
            negative = np.less(values[start:stop], 0, out=_room.masks(stop - start)[0])
            eights = eights & ~np.packbits(negative)  # read before the masks take its room
        np.take(masks, eights, axis=0, out=rows[: len(eights)], mode="clip")
        np.bitwise_and(passing[start:stop], block[: stop - start], out=results[start:stop])


@functools.cache
def _all_or_nothing(kind: Any) -> Any:
    """Return for each of 256 octets its bits, each as an integer of all ones or of all zeros."""
    return -np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).astype(kind)


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
