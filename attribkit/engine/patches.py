"""Signals that are non-zero in a small part of a feature map only, carried as rectangles of one size."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

Starts = tuple[int, ...]

#: How much shorter a rectangle must become to be cut at the border, which takes a copy.
_WORTH = 0.9


@dataclass(frozen=True)
class Axis:
    """Where the rectangles lie along the rows (or the columns) of a map.

    Attributes
    ----------
    starts : tuple of int
        The first row of each job's rectangle; it may lie before the map.
    length : int
        Rows of a rectangle.
    size : int
        Rows of the map.
    """

    starts: Starts
    length: int
    size: int

    @property
    def whole(self) -> bool:
        """Whether the rectangles are the whole map."""
        return self.length == self.size and not any(self.starts)

    @property
    def inside(self) -> bool:
        """Whether no rectangle reaches over the border."""
        return min(self.starts) >= 0 and max(self.starts) + self.length <= self.size

    def fitted(self) -> Axis:
        """Return rectangles that are cut at the border, where that makes them shorter; the whole map at most.

        They keep one length: that of the longest part within the map.
        """
        within = max(min(start + self.length, self.size) - max(start, 0) for start in self.starts)
        if within > _WORTH * self.length and self.length < self.size:
            return self  # hardly shorter: not worth the copy
        within = max(within, 1)
        return Axis(tuple(min(max(start, 0), self.size - within) for start in self.starts), within, self.size)

    def union(self, other: Axis) -> Axis:
        """Return rectangles that hold both."""
        starts = tuple(map(min, self.starts, other.starts))
        ends = (max(a + self.length, b + other.length) for a, b in zip(self.starts, other.starts, strict=True))
        return Axis(starts, max(map(int.__sub__, ends, starts)), self.size).fitted()

    def overlaps(self, starts: Starts, length: int) -> list[tuple[slice, slice]]:
        """Return what each rectangle shares with one of another kind, as rows of its own and of the other."""
        both = []
        for mine, its in zip(self.starts, starts, strict=True):
            first = max(mine, its)
            last = max(min(mine + self.length, its + length), first)
            both.append((slice(first - mine, last - mine), slice(first - its, last - its)))
        return both


@dataclass(frozen=True)
class Patch:
    """The signals of J jobs on one feature map, each within a rectangle; all rectangles have one size.

    A job is one unit on one sample: job ``j`` belongs to sample ``j % N``. A rectangle may reach over the map's border;
    what lies there counts for nothing.

    Attributes
    ----------
    values : Tensor
        [J, C, rows, columns] of the rectangles.
    rows, columns : Axis
        Where they lie.
    spills : bool
        Whether values over the border may be other than zero.
    owned : bool
        Whether ``values`` belong to this patch alone, so that they may be changed.
    """

    values: Tensor
    rows: Axis
    columns: Axis
    spills: bool = False
    owned: bool = True

    @property
    def whole(self) -> bool:
        """Whether the rectangles are the whole map."""
        return self.rows.whole and self.columns.whole

    @property
    def inside(self) -> bool:
        """Whether no rectangle reaches over the border."""
        return self.rows.inside and self.columns.inside

    def with_values(self, values: Tensor, *, spills: bool | None = None) -> Patch:
        """Return the same rectangles with other values, new ones."""
        return replace(self, values=values, owned=True, spills=self.spills if spills is None else spills)

    def rectified(self) -> Patch:
        """Return the positive part."""
        return self.with_values(self.values.clamp_(min=0) if self.owned else self.values.clamp(min=0))

    def times(self, factors: Tensor) -> Patch:
        """Return the product with each sample's own map [N, C, H, W], or with one number a channel, [1, C, 1, 1]."""
        if factors.shape[-2:] == (1, 1):
            return self.with_values(self.values.mul_(factors) if self.owned else self.values * factors)
        return self.with_values(self.crop(factors).mul_(self.values), spills=False)

    def crop(self, maps: Tensor) -> Tensor:
        """Return a copy of the rectangles of the samples' maps [N, C, H, W], zero over the border: [J, C, h, w]."""
        jobs, samples = len(self.values), len(maps)
        if self.whole:
            return maps.repeat(jobs // samples, 1, 1, 1)
        origin = (0,) * jobs
        rows = self.rows.overlaps(origin, self.rows.size)
        columns = self.columns.overlaps(origin, self.columns.size)
        if self.inside:
            return torch.stack([maps[j % samples, :, rows[j][1], columns[j][1]] for j in range(jobs)])
        out = maps.new_zeros((jobs, maps.shape[1], self.rows.length, self.columns.length))
        for j in range(jobs):
            out[j, :, rows[j][0], columns[j][0]] = maps[j % samples, :, rows[j][1], columns[j][1]]
        return out

    def placed(self, rows: Axis, columns: Axis) -> Patch:
        """Return the values in other rectangles of the map; what lies outside those is dropped."""
        if (rows, columns) == (self.rows, self.columns):
            return self
        jobs = len(self.values)
        out = self.values.new_zeros((*self.values.shape[:2], rows.length, columns.length))
        down = self.rows.overlaps(rows.starts, rows.length)
        across = self.columns.overlaps(columns.starts, columns.length)
        if down.count(down[0]) == jobs and across.count(across[0]) == jobs:
            out[:, :, down[0][1], across[0][1]] = self.values[:, :, down[0][0], across[0][0]]
        else:
            for j in range(jobs):
                out[j, :, down[j][1], across[j][1]] = self.values[j, :, down[j][0], across[j][0]]
        return Patch(out, rows, columns, self.spills and not (rows.inside and columns.inside))

    def fitted(self) -> Patch:
        """Return rectangles cut at the border, where that makes them smaller."""
        return self.placed(self.rows.fitted(), self.columns.fitted())

    def clean(self) -> Patch:
        """Return a patch that is zero over the border."""
        if not self.spills or self.inside:
            return self
        # factors, not a mask: torch's masked_fill is many times slower
        values = self.values.mul_ if self.owned else self.values.mul
        return self.with_values(values(self._within()), spills=False)

    def _within(self) -> Tensor:
        """Return 1 on the map and 0 over its border, [J, 1, h, w]."""
        rows, columns = (
            (places >= 0) & (places < axis.size)
            for axis in (self.rows, self.columns)
            for places in [torch.tensor(axis.starts)[:, None] + torch.arange(axis.length)]
        )
        return (rows[:, None, :, None] & columns[:, None, None, :]).to(self.values)

    def plus(self, other: Patch) -> Patch:
        """Return the sum of two patches on one map."""
        rows, columns = self.rows.union(other.rows), self.columns.union(other.columns)
        large, small = (self, other) if self.values.numel() >= other.values.numel() else (other, self)
        total = large.placed(rows, columns)
        base = total.values if total.owned else total.values.clone()
        down = small.rows.overlaps(rows.starts, rows.length)
        across = small.columns.overlaps(columns.starts, columns.length)
        if down.count(down[0]) == len(down) and across.count(across[0]) == len(across):
            base[:, :, down[0][1], across[0][1]] += small.values[:, :, down[0][0], across[0][0]]
        else:
            base += small.placed(rows, columns).values
        return Patch(base, rows, columns, self.spills or other.spills)
