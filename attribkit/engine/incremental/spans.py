"""Which rows (or columns) of every feature map change when a stretch of the image does.

Rows and columns are independent of each other, so that everything here is along one axis. A span is ``[low, high)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Spans = tuple[list[int], list[int]]


@dataclass(frozen=True)
class Window:
    """A sliding window along one axis: kernel, stride, padding before, dilation, and the sizes of input and output."""

    kernel: int
    stride: int
    padding: int
    dilation: int
    size: int
    out: int

    @property
    def reach(self) -> int:
        return self.dilation * (self.kernel - 1) + 1

    @property
    def after(self) -> int:
        """How much padding the last window needs behind the map."""
        return max(0, (self.out - 1) * self.stride + self.reach - self.size - self.padding)

    def changed(self, spans: Spans) -> Spans:
        """Return the spans of outputs that see any of the input's spans; never empty."""
        lows, highs = [], []
        for low, high in zip(*spans, strict=True):
            first = -((self.reach - 1 - low - self.padding) // self.stride)
            first = min(max(first, 0), self.out - 1)
            last = min(max((high - 1 + self.padding) // self.stride, first), self.out - 1)
            lows.append(first)
            highs.append(last + 1)
        return lows, highs

    def needed(self, offsets: Sequence[int], size: int) -> tuple[tuple[int, ...], int]:
        """Return where the inputs of ``size`` outputs start, counted in the padded map, and how many they are."""
        return tuple(offset * self.stride for offset in offsets), (size - 1) * self.stride + self.reach


def union(several: Sequence[Spans]) -> Spans:
    """Return for each position the smallest span that holds all of its spans."""
    lows = [min(values) for values in zip(*(s[0] for s in several), strict=True)]
    highs = [max(values) for values in zip(*(s[1] for s in several), strict=True)]
    return lows, highs


def shifted(spans: Spans, by: int) -> Spans:
    """Return the spans moved by some places."""
    return [low + by for low in spans[0]], [high + by for high in spans[1]]


def runs(numbers: Sequence[int]) -> list[tuple[int, int, int]]:
    """Cut a sequence into arithmetic progressions: (first index, one past the last, step)."""
    found, start = [], 0
    while start < len(numbers):
        end = start + 1
        step = numbers[end] - numbers[start] if end < len(numbers) else 0
        while end < len(numbers) and numbers[end] - numbers[end - 1] == step:
            end += 1
        found.append((start, end, step))
        start = end
    return found


def equal_runs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Cut a sequence into stretches of one number: (first index, one past the last)."""
    found, start = [], 0
    for end in range(1, len(numbers) + 1):
        if end == len(numbers) or numbers[end] != numbers[start]:
            found.append((start, end))
            start = end
    return found
