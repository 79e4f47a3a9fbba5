"""Shorter ways to the same sums, for convolutions that torch takes long for on the CPU.

What is added is what torch adds, in the same type. How torch orders a sum depends on the sizes and on the number of
threads; here it may come out otherwise in the last bits of a float32, where it says so.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from attribkit.engine.lean import store
from attribkit.engine.lean.standin import is_plain

#: Bytes of an input below which torch's own way is short enough.
WORTH = 1 << 19

#: Terms of a sum that libraries add in one go, and so in the same order. Longer ones are cut into pieces, each library
#: at its own places.
SHORT = 128

#: Channels that a vector instruction holds: fewer take as long.
_LANES = 16

#: How many times as many steps torch must take to make up for the turning and laying out of blocks.
_GAIN = 2.5

#: Bytes of a signal that stay in the caches while it is turned, laid out anew and convolved.
_PART = 1 << 22


@dataclass(frozen=True, slots=True)
class Settings:
    """How a convolution of two dimensions is set.

    Attributes
    ----------
    stride, padding : tuple of int
        By dimension.
    size : tuple of int
        Height and width of the input.
    """

    stride: tuple[int, int]
    padding: tuple[int, int]
    size: tuple[int, int]


class Shortcut:
    """A shorter way through one convolution.

    Parameters
    ----------
    settings
        Of the convolution.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def up(self, x: Tensor, weight: Tensor) -> Tensor | None:
        """Return the output for an input; None where torch's way is as short."""
        return None

    def back(self, signal: Tensor, weight: Tensor) -> Tensor | None:
        """Return the signal at the input; None where torch's way is as short."""
        return None


class Products(Shortcut):
    """A 1×1 convolution with large maps as one product of matrices for each sample.

    Torch lays maps out anew before and after. Sums are short ones alone: the same to the bit.
    """

    def up(self, x: Tensor, weight: Tensor) -> Tensor | None:
        """Multiply by the weights."""
        return _product(weight.flatten(1), x)

    def back(self, signal: Tensor, weight: Tensor) -> Tensor | None:
        """Multiply by the transposed weights."""
        return _product(weight.flatten(1).t(), signal)


def _product(matrix: Tensor, maps: Tensor) -> Tensor | None:
    if matrix.shape[1] > SHORT:
        return None
    out = store.on_large_pages(maps.new_empty((maps.shape[0], matrix.shape[0], *maps.shape[2:])))
    torch.bmm(matrix.expand(maps.shape[0], -1, -1), maps.flatten(2), out=out.flatten(2))
    return out


class Scattered(Shortcut):
    """The way back through a 1×1 convolution with a stride: most of its result is zero.

    Torch computes all of it. Here one product gives what is not zero, in an order of adding of its own.
    """

    def back(self, signal: Tensor, weight: Tensor) -> Tensor | None:
        """Multiply by the transposed weights, and put the products where the windows lie."""
        count, _, height, width = signal.shape
        rows = signal.permute(0, 2, 3, 1).reshape(-1, signal.shape[1]) @ weight.flatten(1)
        out = store.on_large_pages(signal.new_empty((count, weight.shape[1], *self.settings.size))).zero_()
        down, right = self.settings.stride
        out[:, :, ::down, ::right] = rows.view(count, height, width, -1).permute(0, 3, 1, 2)
        return out


class Blocks(Shortcut):
    """The way back to few channels, an image's three above all, through a convolution with a stride.

    A convolution of stride s is one of stride 1 on the input's s×s blocks, each taken for one pixel of s² times the
    channels, with a kernel that is as much smaller. Vector instructions compute three channels in the time of sixteen;
    twelve of a kernel a quarter as large take less than half of it. The signal is turned by 180° so that sums come in
    torch's own order; for large kernels, and sizes that blocks do not fill, torch's is another one.
    """

    def back(self, signal: Tensor, weight: Tensor) -> Tensor | None:
        """Convolve the turned signal with the kernel of the blocks."""
        count, rows = len(signal), max(1, _PART // (signal[0].numel() * signal.element_size()))
        kernel, blocks = _in_blocks(weight, self.settings), _blocks(self.settings)
        out = store.on_large_pages(signal.new_empty((count, weight.shape[1], *self.settings.size)))
        for start in range(0, count, rows):
            part = slice(start, start + rows)
            out[part] = self._back(signal[part], kernel, blocks)
        # the smaller kernel has zeros at its borders, and infinity times zero is not a number
        return out if out.sum().isfinite() else None

    def _back(self, signal: Tensor, kernel: Tensor, blocks: list[int]) -> Tensor:
        padding, starts = [], []
        for p, s, steps, taps, reached in zip(
            self.settings.padding, self.settings.stride, blocks, kernel.shape[2:], signal.shape[2:], strict=True
        ):
            lead = -(-p // s)  # blocks of which the first window begins before the image
            padding.append(max(0, taps - 1 - lead, steps + lead - reached))
            starts.append(padding[-1] + reached - lead - steps)
        turned = signal.flip(2, 3).contiguous(memory_format=torch.channels_last)
        found = F.conv2d(turned, kernel, padding=tuple(padding))
        for dim, (start, steps) in enumerate(zip(starts, blocks, strict=True), 2):
            found = found.narrow(dim, start, steps)
        height, width = self.settings.size
        return F.pixel_shuffle(found.flip(2, 3), self.settings.stride[0])[:, :, :height, :width]


def _blocks(settings: Settings) -> list[int]:
    """Return how many blocks cover the input, by dimension."""
    return [-(-size // s) for size, s in zip(settings.size, settings.stride, strict=True)]


def _taps(weight: Tensor, settings: Settings) -> list[int]:
    """Return the size of the blocks' kernel, by dimension."""
    return [-(-(-p % s + k) // s) for k, s, p in zip(weight.shape[2:], settings.stride, settings.padding, strict=True)]


def _in_blocks(weight: Tensor, settings: Settings) -> Tensor:
    """Return the kernel of the blocks, [C·s², O, taps, taps]."""
    borders: list[int] = []
    for k, s, p, taps in zip(weight.shape[2:], settings.stride, settings.padding, _taps(weight, settings), strict=True):
        before = -p % s  # a window begins at the begin of a block
        borders = [before, taps * s - before - k, *borders]
    return F.pixel_unshuffle(F.pad(weight, borders), settings.stride[0]).transpose(0, 1)


def shortcut(x: Tensor, weight: Tensor, settings: Settings) -> Shortcut | None:
    """Return the shorter way of a convolution without dilation or groups; None where torch's is as short.

    Parameters
    ----------
    x
        The input, [N, C, H, W].
    weight
        [O, C, kernel height, kernel width].
    settings
        Of the convolution.
    """
    if not fits(x) or x.numel() * x.element_size() < WORTH or not fits(weight.detach()):
        return None
    kernel, (down, right) = tuple(weight.shape[2:]), settings.stride
    if kernel == (1, 1) and settings.padding == (0, 0):
        if max(down, right) > 1:
            return Scattered(settings)
        largest = max(weight.shape[:2]) * math.prod(settings.size) * len(x) * x.element_size()
        return Products(settings) if largest >= store.LARGE // 2 else None
    if down != right or not _has_vectors():
        return None
    now = _vectors(weight.shape[1]) * math.prod(kernel)
    then = _vectors(weight.shape[1] * down * right) * math.prod(_taps(weight, settings))
    return Blocks(settings) if _GAIN * then <= now else None


def fits(tensor: Tensor) -> bool:
    """Tell whether a tensor is of the kind that shorter ways are for, and lies in memory in the order of its sizes.

    Torch chooses the layout of its results by the strides, also by those of dimensions of size 1.
    """
    return (
        tensor.device.type == "cpu"
        and tensor.dtype == torch.float32
        and tensor.ndim == 4
        and tensor.stride() == tuple(math.prod(tensor.shape[dim:]) for dim in range(1, 5))
        and is_plain(tensor)
    )


def _vectors(channels: int) -> int:
    return -(-channels // _LANES)


def _has_vectors() -> bool:
    """Tell whether torch convolves by oneDNN's own instructions; elsewhere it lays every window out anew."""
    has_library: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return has_library and torch.backends.cpu.get_cpu_capability().startswith("AVX")
