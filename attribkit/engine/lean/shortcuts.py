"""Shorter ways to the same sums, for convolutions that torch takes long for on the CPU.

What is added is what torch adds, in the same type. How torch orders a sum depends on sizes and on the number of
threads; here it may be another order, and the last bits of a float32 others. On the way up that is made sure not to be:
a model's output is the model's to the bit.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from attribkit.engine.lean import store
from attribkit.engine.lean.standin import is_plain

#: Bytes of an input below which torch's own way is short enough.
WORTH = 1 << 19

#: Terms of a sum that most libraries add in one go, and so in the same order. Longer ones are cut into pieces, each
#: library at its own places; what differs in the last bits then is not worth the time that is saved.
SHORT = 128

#: Channels that a vector instruction holds: fewer take as long.
_LANES = 16

#: How many times as many steps torch must take to make up for the turning and laying out of blocks.
_GAIN = 2.5

#: Bytes of a signal that stay in the caches while they are turned, laid out anew and convolved.
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
        """Return the output without its bias, to the bit; None where it has to be torch's own way."""
        return None

    def back(self, signal: Tensor, weight: Tensor) -> Tensor | None:
        """Return the signal at the input; None where it has to be torch's own way after all."""
        raise NotImplementedError


class Products(Shortcut):
    """A 1×1 convolution with large maps, as one product of matrices for each sample.

    Torch lays maps out anew before and after.
    """

    def up(self, x: Tensor, weight: Tensor) -> Tensor | None:
        """Multiply by the weights, from the third time on that there are such sizes."""
        if x.shape[0] * weight.shape[0] * math.prod(self.settings.size) * x.element_size() < store.LARGE:
            return None
        if not (fits(x) and weight.shape[1] <= SHORT and _is_aligned(x) and _is_aligned(weight)):
            return None
        trial = _trial(x.shape, weight.shape, torch.get_num_threads(), _has_library())
        return _product(weight.flatten(1), x) if trial.passed() else None

    def back(self, signal: Tensor, weight: Tensor) -> Tensor | None:
        """Multiply by the transposed weights."""
        return _product(weight.flatten(1).t(), signal) if weight.shape[0] <= SHORT else None


def _product(matrix: Tensor, maps: Tensor) -> Tensor:
    out = store.on_large_pages(maps.new_empty((len(maps), matrix.shape[0], *maps.shape[2:])))
    torch.bmm(matrix.expand(len(maps), -1, -1), maps.flatten(2), out=out.flatten(2))
    return out


def _is_aligned(tensor: Tensor) -> bool:
    """Tell whether a tensor begins where torch lets tensors begin; for others, libraries may take another order."""
    return tensor.data_ptr() % 64 == 0


class _Trial:
    """Whether products of these sizes are torch's convolutions to the bit, found out with noise at the second call.

    Not at the first, which would take twice as long.
    """

    def __init__(self, maps: torch.Size, weight: torch.Size) -> None:
        self._maps, self._weight = maps, weight
        self._calls, self._passed = 0, False

    def passed(self) -> bool:
        """Count a call; tell whether one has found the two to be the same."""
        self._calls += 1
        if self._calls == 2:
            self._passed = self._run()
        return self._passed

    def _run(self) -> bool:
        generator = torch.Generator().manual_seed(0)
        maps, weight = (
            torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")
            for shape in (self._maps, self._weight)
        )
        return torch.equal(_product(weight.flatten(1), maps), F.conv2d(maps, weight))


@functools.lru_cache(maxsize=64)
def _trial(maps: torch.Size, weight: torch.Size, threads: int, library: bool) -> _Trial:
    """Return the trial of these sizes, for torch's number of threads and with or without oneDNN."""
    return _Trial(maps, weight)


class Scattered(Shortcut):
    """The way back through a 1×1 convolution with a stride: most of its result is zero.

    Torch computes all of it. Here one product gives what is not zero.
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
    """The way back to few channels, such as an image's three, through a convolution with a stride.

    A convolution of stride s is one of stride 1 on the input's s×s blocks, each taken for one pixel of s² times the
    channels, with a kernel that is as much smaller. Vector instructions compute three channels in the time of sixteen;
    twelve of a kernel a quarter as large take less than half of it. The signal is turned by 180°: for many stems sums
    then come in torch's own order.
    """

    def back(self, signal: Tensor, weight: Tensor) -> Tensor | None:
        """Convolve the turned signal with the kernel of the blocks, in parts that stay in the caches."""
        side = self.settings.stride[0]
        kernel = _of_blocks(weight, self.settings)
        high, wide = (range(-(-size // side)) for size in self.settings.size)
        row = signal[0, :, 0].numel() * signal.element_size()
        samples, rows = max(1, _PART // (row * signal.shape[2])), max(1, _PART // row)
        out = store.on_large_pages(signal.new_empty((len(signal), weight.shape[1], *self.settings.size)))
        for start in range(0, len(signal), samples):
            for top in high[::rows]:
                into = out[start : start + samples, :, top * side : (top + rows) * side]
                found = self._pixels(signal[start : start + samples], kernel, (high[top : top + rows], wide))
                into.copy_(found[:, :, : into.shape[2], : into.shape[3]])
        # the smaller kernel has zeros at its borders, and infinity times zero is not a number
        return out if out.sum().isfinite() else None

    def _pixels(self, signal: Tensor, kernel: Tensor, blocks: tuple[range, range]) -> Tensor:
        """Return the signal at the pixels of these rows and columns of blocks."""
        padding, firsts = [], []
        for dim, wanted in enumerate(blocks):
            taps, places = kernel.shape[2 + dim], signal.shape[2 + dim]
            # window w reaches the blocks from w - lead on, as many as there are taps
            lead = -(-self.settings.padding[dim] // self.settings.stride[dim])
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
        return F.pixel_shuffle(found.flip(2, 3), self.settings.stride[0])


def _taps(weight: Tensor, settings: Settings) -> list[int]:
    """Return the size of the blocks' kernel, by dimension."""
    return [-(-(-p % s + k) // s) for k, s, p in zip(weight.shape[2:], settings.stride, settings.padding, strict=True)]


def _of_blocks(weight: Tensor, settings: Settings) -> Tensor:
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
        if not _is_exact():
            return None
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


def _is_exact() -> bool:
    """Tell whether nobody has asked for coarser products or convolutions: each has a setting of its own."""
    convolutions: Any = getattr(torch.backends.mkldnn, "conv", None)  # since torch 2.9
    asked = {torch.get_float32_matmul_precision(), getattr(convolutions, "fp32_precision", "none")}
    return asked <= {"highest", "none", "ieee"}


def _has_library() -> bool:
    return torch._C._has_mkldnn and torch._C._get_mkldnn_enabled()


def _has_vectors() -> bool:
    """Tell whether torch convolves by oneDNN's own instructions; elsewhere it lays every window out anew."""
    return _has_library() and torch.backends.cpu.get_cpu_capability().startswith("AVX")
