"""The way back of single operations on rectangles: each rule carries a `Patch` from an output to the inputs.

Every rule is the transpose of its operation's derivative, restricted to what the rectangles see; borders are exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from attribkit.engine.patches import Axis, Patch

Size = tuple[int, int]
#: Carries a patch at an operation's output to its inputs; ``sizes`` are rows and columns of the inputs' maps.
Rule = Callable[[Patch, Sequence[Size]], Sequence[Patch]]


@dataclass(frozen=True)
class Window:
    """How an operation's windows lie along one axis: output ``i`` sees inputs from ``i·stride - padding`` on."""

    kernel: int
    stride: int
    padding: int
    dilation: int

    @property
    def reach(self) -> int:
        """How many inputs a window spans."""
        return (self.kernel - 1) * self.dilation + 1

    def behind(self, axis: Axis, size: int) -> Axis:
        """Return the inputs' rectangles that the outputs' see, on a map of ``size``."""
        if axis.whole:
            return Axis(axis.starts, size, size)
        starts = tuple(start * self.stride - self.padding for start in axis.starts)
        return Axis(starts, (axis.length - 1) * self.stride + self.reach, size)

    def padding_of(self, axis: Axis) -> int:
        """Return the padding with which the transpose fills exactly the rectangles `behind`."""
        return self.padding if axis.whole else 0


Windows = tuple[Window, Window]


def windows(kernel: Any, stride: Any, padding: Any, dilation: Any) -> Windows:
    """Return the windows of rows and of columns; each setting is one number or two."""
    rows, columns = (
        [s if isinstance(s, int) else s[i % len(s)] for s in (kernel, stride, padding, dilation)] for i in (0, 1)
    )
    return Window(*rows), Window(*columns)


def identity(patch: Patch, sizes: Sequence[Size]) -> Sequence[Patch]:
    """Carry the signal unchanged."""
    return (patch,)


def rectified(then: Rule) -> Rule:
    """Return a rule that takes the signal's positive part first."""
    return lambda patch, sizes: then(patch.rectified(), sizes)


def scaled(factors: Tensor) -> Rule:
    """Return the rule of an operation that multiplies each channel by a number; ``factors`` is [C]."""
    factors = factors.view(1, -1, 1, 1)
    return lambda patch, sizes: (patch.times(factors),)


def elementwise(derivative: Callable[[], Tensor]) -> Rule:
    """Return the rule of an elementwise operation; ``derivative`` makes its derivative, [N, C, H, W]."""
    return lambda patch, sizes: (patch.times(derivative()),)


def relu(output: Callable[[], Tensor]) -> Rule:
    """Return the rule of a ReLU, from its output or from anything that is positive in the same places."""

    def back(patch: Patch, sizes: Sequence[Size]) -> Sequence[Patch]:
        seen = patch.crop(output())
        return (patch.with_values(torch.ops.aten.threshold_backward(patch.values, seen, 0), spills=False),)

    return back


def convolution(weight: Tensor, over: Windows, groups: int) -> Rule:
    """Return the rule of a convolution with a weight [out, in / groups, rows, columns]."""

    def back(patch: Patch, sizes: Sequence[Size]) -> Sequence[Patch]:
        patch = patch.clean()
        axes = [
            window.behind(axis, size)
            for window, axis, size in zip(over, (patch.rows, patch.columns), sizes[0], strict=True)
        ]
        padding = [window.padding_of(axis) for window, axis in zip(over, (patch.rows, patch.columns), strict=True)]
        stride = [window.stride for window in over]
        shape = (len(patch.values), weight.shape[1] * groups, *(axis.length for axis in axes))
        if weight.shape[-2:] == (1, 1) and stride != [1, 1] and padding == [0, 0]:
            # all but every so many inputs are left out: carrying the others alone is many times faster
            values = patch.values.new_zeros(shape)
            part = (len(patch.values), shape[1], *patch.values.shape[-2:])
            values[:, :, :: stride[0], :: stride[1]] = _transposed(
                patch.values, part, weight, [1, 1], [0, 0], [1, 1], groups
            )
        else:
            values = _transposed(
                patch.values, shape, weight, stride, padding, [window.dilation for window in over], groups
            )
        return (Patch(values, axes[0], axes[1], spills=True).fitted(),)

    return back


def _transposed(
    values: Tensor,
    shape: tuple[int, ...],
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    # autograd's own derivative, which asks of the input no more than its shape
    like = values.new_empty(shape)
    mask = [True, False, False]
    found: Tensor = torch.ops.aten.convolution_backward(
        values, like, weight, None, stride, padding, dilation, False, [0, 0], groups, mask
    )[0]
    return found


def average(over: Windows) -> Rule:
    """Return the rule of an average pool whose windows all count alike."""
    share = 1 / (over[0].kernel * over[1].kernel)

    def back(patch: Patch, sizes: Sequence[Size]) -> Sequence[Patch]:
        channels = patch.values.shape[1]
        ones = patch.values.new_full((channels, 1, over[0].kernel, over[1].kernel), share)
        return convolution(ones, over, channels)(patch, sizes)

    return back


def unpool(switches: Tensor, over: Windows) -> Rule:
    """Return the rule of a max pool; ``switches`` [N, C, H, W] are flat places on the input's map."""

    def back(patch: Patch, sizes: Sequence[Size]) -> Sequence[Patch]:
        patch = patch.clean()
        rows, columns = (
            window.behind(axis, size)
            for window, axis, size in zip(over, (patch.rows, patch.columns), sizes[0], strict=True)
        )
        places = patch.crop(switches)
        width = sizes[0][1]
        if columns.length != width or not columns.whole or not rows.whole:
            down = places.div(width, rounding_mode="trunc")
            places -= down * width  # the column
            places += down * columns.length
            first = torch.tensor(
                [top * columns.length + left for top, left in zip(rows.starts, columns.starts, strict=True)],
                device=places.device,
            )
            places -= first.view(-1, 1, 1, 1)
            if not patch.inside:  # there are no switches over the border, and no signal
                places.clamp_(0, rows.length * columns.length - 1)
        values = patch.values.new_zeros((*patch.values.shape[:2], rows.length * columns.length))
        values.scatter_add_(2, places.flatten(2), patch.values.flatten(2))
        return (Patch(values.view(*values.shape[:2], rows.length, columns.length), rows, columns).fitted(),)

    return back


def summed(factors: Sequence[float]) -> Rule:
    """Return the rule of a weighted sum of maps of one shape."""

    def back(patch: Patch, sizes: Sequence[Size]) -> Sequence[Patch]:
        shared = replace(patch, owned=False)
        return [shared if factor == 1 else patch.with_values(patch.values * factor) for factor in factors]

    return back


def joined(channels: Sequence[int]) -> Rule:
    """Return the rule of a concatenation along the channels."""

    def back(patch: Patch, sizes: Sequence[Size]) -> Sequence[Patch]:
        return [replace(patch, values=part, owned=False) for part in torch.split(patch.values, list(channels), 1)]

    return back


def padded(before: Size) -> Rule:
    """Return the rule of padding with a constant (cropping, where negative): rows and columns put before the map."""

    def back(patch: Patch, sizes: Sequence[Size]) -> Sequence[Patch]:
        patch = patch.clean()
        axes = [
            Axis(tuple(start - more for start in axis.starts), axis.length, size)
            for axis, more, size in zip((patch.rows, patch.columns), before, sizes[0], strict=True)
        ]
        return (replace(patch, rows=axes[0], columns=axes[1], spills=True).fitted(),)

    return back
