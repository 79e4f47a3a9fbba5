"""Shorter ways to the same sums, for convolutions that torch takes long for on the CPU.

What is added is what torch adds, in the same type. In which order depends, there and here, on sizes, on the number of
threads and on the machine. So a way is tried with noise before it is taken, and taken where it gives the same bits.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from attribkit.engine.lean import store
from attribkit.engine.lean.standin import StandIn, is_in_order, is_plain
from attribkit.engine.lean.step import windows
from attribkit.engine.lean.trials import Way, way_for

#: Bytes of an input below which torch's own way is short enough.
WORTH = 1 << 19

#: Bytes of what goes in and comes out above which no trial is made: it takes so much memory besides.
MOST = 1 << 27

#: Bytes of a map, and places in it, below which laying it out anew takes no time to speak of beside a product.
_WIDE, _PLACES = 1 << 22, 1 << 11

#: Channels that a vector instruction holds: fewer take as long.
_LANES = 16

#: How many times as many steps torch must take to make up for the turning and laying out of blocks.
_GAIN = 2.5

#: Bytes of a signal that stay in the caches while they are turned, laid out anew and convolved.
_PART = 1 << 22

_backward = torch.ops.aten.convolution_backward.default


@dataclass(frozen=True, slots=True)
class Settings:
    """How a convolution of two dimensions is set.

    Attributes
    ----------
    stride, padding : tuple of int
        By dimension.
    size : tuple of int
        Height and width of the input.
    groups : int
        Into how many parts the channels fall.
    """

    stride: tuple[int, int]
    padding: tuple[int, int]
    size: tuple[int, int]
    groups: int = 1

    def windows(self, kernel: Sequence[int]) -> list[int]:
        """Return the height and width of the output."""
        return windows(self.size, kernel, self.stride, self.padding, (1, 1))


def torchs_up(x: Tensor, weight: Tensor, settings: Settings) -> Tensor:
    """Convolve an input as torch does."""
    return F.conv2d(x, weight, None, settings.stride, settings.padding, 1, settings.groups)


def torchs_back(
    signal: Tensor, weight: Tensor, settings: Settings, order: torch.memory_format = torch.contiguous_format
) -> Tensor:
    """Carry a signal back as torch does, to an input that lies in a memory format."""
    groups = settings.groups
    x = StandIn.in_order((len(signal), weight.shape[1] * groups, *settings.size), order, signal).beside(signal)
    how = (settings.stride, settings.padding, [1, 1], False, [0, 0], groups)
    found: Tensor = _backward(signal, x, weight, None, *how, [True, False, False])[0]
    return found


# -- the ways ----------------------------------------------------------------------------------------------------------


def product_up(x: Tensor, weight: Tensor, settings: Settings) -> Tensor:
    """Go up through a 1×1 convolution, by one product of matrices for each sample.

    Torch lays maps out anew before and after, which takes long for large ones.
    """
    return _product(weight.flatten(1), x)


def product_back(signal: Tensor, weight: Tensor, settings: Settings) -> Tensor:
    """Go back through a 1×1 convolution, by one product of matrices for each sample."""
    return _product(weight.flatten(1).t(), signal)


def _product(matrix: Tensor, maps: Tensor) -> Tensor:
    out = store.on_large_pages(maps.new_empty((len(maps), matrix.shape[0], *maps.shape[2:])))
    torch.bmm(matrix.expand(len(maps), -1, -1), maps.flatten(2), out=out.flatten(2))
    return out


def scattered(signal: Tensor, weight: Tensor, settings: Settings) -> Tensor:
    """Go back through a 1×1 convolution with a stride, where most of the result is zero: torch computes all of it."""
    size = (signal.shape[2], signal.shape[3])
    found = torchs_back(signal, weight, Settings((1, 1), (0, 0), size))
    out = store.on_large_pages(signal.new_empty((len(signal), weight.shape[1], *settings.size))).zero_()
    down, right = settings.stride
    out[:, :, ::down, ::right] = found
    return out


def scattered_by_pixels(signal: Tensor, weight: Tensor, settings: Settings) -> Tensor:
    """Do the same with channels last: the order of torch's sums for some sizes."""
    return scattered(signal.contiguous(memory_format=torch.channels_last), weight, settings).contiguous()


def blocks(signal: Tensor, weight: Tensor, settings: Settings) -> Tensor | None:
    """Go back to few channels, such as an image's three, through a convolution with a stride.

    A convolution of stride s is one of stride 1 on the input's s×s blocks, each taken for one pixel of s² times the
    channels, with a kernel that is as much smaller. Vector instructions compute three channels in the time of sixteen;
    twelve of a kernel a quarter as large take less than half of it. The signal is turned by 180°, for torch's order.
    """
    side, kernel = settings.stride[0], _of_blocks(weight, settings)
    high, wide = (range(-(-size // side)) for size in settings.size)
    row = signal[0, :, 0].numel() * signal.element_size()
    samples, rows = max(1, _PART // (row * signal.shape[2])), max(1, _PART // row)
    out = store.on_large_pages(signal.new_empty((len(signal), weight.shape[1], *settings.size)))
    for start in range(0, len(signal), samples):
        for top in high[::rows]:
            into = out[start : start + samples, :, top * side : (top + rows) * side]
            found = _pixels(signal[start : start + samples], kernel, settings, (high[top : top + rows], wide))
            into.copy_(found[:, :, : into.shape[2], : into.shape[3]])
    # the smaller kernel has zeros at its borders, and infinity times zero is not a number
    return out if out.sum().isfinite() else None


def _pixels(signal: Tensor, kernel: Tensor, settings: Settings, blocks: tuple[range, range]) -> Tensor:
    """Return the signal at the pixels of these rows and columns of blocks."""
    padding, firsts = [], []
    for dim, wanted in enumerate(blocks):
        taps, places = kernel.shape[2 + dim], signal.shape[2 + dim]
        # window w reaches the blocks from w - lead on, as many as there are taps
        lead = -(-settings.padding[dim] // settings.stride[dim])
        low = max(0, min(wanted.start + lead - taps + 1, places - 1))
        count = max(1, min(wanted.stop + lead, places) - low)
        signal = signal.narrow(2 + dim, low, count)
        lead += wanted.start - low
        padding.append(max(0, taps - 1 - lead, len(wanted) + lead - count))
        firsts.append(padding[-1] + count - lead - len(wanted))
    turned = signal.flip(2, 3).contiguous(memory_format=torch.channels_last)
    found = F.conv2d(turned, kernel, padding=tuple(padding))
    for dim, (first, wanted) in enumerate(zip(firsts, blocks, strict=True), 2):
        found = found.narrow(dim, first, len(wanted))
    return F.pixel_shuffle(found.flip(2, 3), settings.stride[0])


def _taps(kernel: Sequence[int], settings: Settings) -> list[int]:
    """Return the size of the blocks' kernel, by dimension."""
    return [-(-(-p % s + k) // s) for k, s, p in zip(kernel, settings.stride, settings.padding, strict=True)]


def _of_blocks(weight: Tensor, settings: Settings) -> Tensor:
    """Return the kernel of the blocks, [C·s², O, taps, taps]."""
    borders: list[int] = []
    kernel = weight.shape[2:]
    for k, s, p, taps in zip(kernel, settings.stride, settings.padding, _taps(kernel, settings), strict=True):
        before = -p % s  # a window begins at the begin of a block
        borders = [before, taps * s - before - k, *borders]
    return F.pixel_unshuffle(F.pad(weight, borders), settings.stride[0]).transpose(0, 1)


# -- which is taken ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Shortcut:
    """Shorter ways through one convolution, the best first.

    Attributes
    ----------
    settings : Settings
        Of the convolution.
    ways_up, ways_back : tuple of Way
        For its input, its bias left out, and for a signal at its output.
    """

    settings: Settings
    ways_up: tuple[Way, ...] = ()
    ways_back: tuple[Way, ...] = ()

    def up(self, x: Tensor, weight: Tensor) -> Tensor | None:
        """Return the output for an input, without its bias; None where it has to be torch's own way."""
        return self._by(torchs_up, self.ways_up, x, weight)

    def back(self, signal: Tensor, weight: Tensor) -> Tensor | None:
        """Return the signal at the input; None where it has to be torch's own way."""
        return self._by(torchs_back, self.ways_back, signal, weight)

    def _by(self, torchs: Way, ways: tuple[Way, ...], maps: Tensor, weight: Tensor) -> Tensor | None:
        if not ways or not fits(maps):
            return None
        way = way_for(torchs, ways, self.settings, maps, weight, library=_has_library())
        return None if way is None else way(maps, weight, self.settings)


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
    if x.numel() * x.element_size() < WORTH or not fits(x) or not fits(weight.detach()) or not is_exact():
        return None
    return _shortcut(len(x), weight.shape, settings, x.element_size(), has_vectors())


@functools.lru_cache(maxsize=1024)
def _shortcut(
    count: int, weight: torch.Size, settings: Settings, element_size: int, has_vectors: bool
) -> Shortcut | None:
    """Return the shorter way for so many samples and weights of these sizes."""
    kernel, (down, right) = tuple(weight[2:]), settings.stride
    places = settings.windows(kernel)
    sizes = [
        element_size * count * channels * math.prod(size)
        for channels, size in ((weight[1], settings.size), (weight[0], places))
    ]
    if sum(sizes) > MOST:
        return None
    if kernel == (1, 1) and settings.padding == (0, 0):
        if max(down, right) > 1:
            return Shortcut(settings, ways_back=(scattered, scattered_by_pixels))
        if max(sizes) < _WIDE or math.prod(settings.size) < _PLACES:
            return None
        return Shortcut(settings, (product_up,), (product_back,))
    if down != right or not has_vectors:
        return None
    now = _vectors(weight[1]) * math.prod(kernel)
    then = _vectors(weight[1] * down * right) * math.prod(_taps(kernel, settings))
    return Shortcut(settings, ways_back=(blocks,)) if _GAIN * then <= now else None


def fits(tensor: Tensor) -> bool:
    """Tell whether a tensor is of the kind that shorter ways are for."""
    return (
        tensor.device.type == "cpu"
        and tensor.dtype == torch.float32
        and tensor.ndim == 4
        and is_in_order(tensor)
        and is_plain(tensor)
    )


def _vectors(channels: int) -> int:
    return -(-channels // _LANES)


def is_exact() -> bool:
    """Tell whether nobody has asked for coarser products or convolutions: each has a setting of its own."""
    convolutions: Any = getattr(torch.backends.mkldnn, "conv", None)  # since torch 2.9
    asked = {torch.get_float32_matmul_precision(), getattr(convolutions, "fp32_precision", "none")}
    return asked <= {"highest", "none", "ieee"}


def _has_library() -> bool:
    return torch._C._has_mkldnn and torch._C._get_mkldnn_enabled()


def has_vectors() -> bool:
    """Tell whether torch convolves by oneDNN's own instructions; elsewhere it lays every window out anew."""
    return _has_library() and torch.backends.cpu.get_cpu_capability().startswith("AVX")
