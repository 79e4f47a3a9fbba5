"""Values on a block of positions: patches where only a rectangle changes, full maps elsewhere."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from attribkit.engine.incremental.graph import Graph
from attribkit.engine.incremental.spans import Spans, Window, equal_runs, runs

Place = tuple[tuple[int, ...], int]  # where each position's rectangle starts along an axis, and how long all are


class Clean:
    """The values of one clean image, as maps [rows, columns, rest…] with whatever padding is asked for."""

    def __init__(self, graph: Graph, values: dict[int, Tensor]) -> None:
        self.graph = graph
        self.values = values
        self._maps: dict[Any, Tensor] = {}

    def map(self, index: int, pads: tuple[int, int, int, int] = (0, 0, 0, 0), fill: float = 0.0) -> Tensor:
        """Return a value [rows, columns, rest…], contiguous."""
        key = (index, pads, fill) if any(pads) else (index,)
        found = self._maps.get(key)
        if found is None:
            axes = self.graph.values[index].axes or (0, 1)
            found = self.values[index][0].movedim([a - 1 for a in axes], (0, 1))
            if any(pads):
                behind = [0, 0] * (found.ndim - 2)
                found = F.pad(found, [*behind, pads[2], pads[3], pads[0], pads[1]], value=fill)
            found = self._maps[key] = found.contiguous()
        return found


class Side:
    """One axis of a block of positions: where the rectangle of every value starts, and its common length."""

    def __init__(self, axis: int, spans: dict[int, Spans], lengths: dict[int, int], positions: list[int]) -> None:
        self.axis, self.positions = axis, positions
        self.places: dict[int, Place] = {}
        self.starts: dict[Any, Any] = {}
        for index, (lows, highs) in spans.items():
            size = max(highs[i] - lows[i] for i in positions)
            limit = lengths[index] - size
            self.places[index] = tuple(min(lows[i], limit) for i in positions), size

    def gathers(self, tops: tuple[int, ...]) -> list[tuple[int, int, int, int]]:
        """Return how to read stretches that start at ``tops``: (first position, one past the last, start, step)."""
        key = ("g", tops)
        if key not in self.starts:
            self.starts[key] = [(a, b, tops[a], step) for a, b, step in runs(tops)]
        found: list[tuple[int, int, int, int]] = self.starts[key]
        return found

    def pastes(self, place: Place, tops: tuple[int, ...], size: int, before: int) -> list[tuple[int, ...]]:
        """Return how to paste rectangles at ``place`` into stretches: positions, then source and destination."""
        key = (place, tops, size, before)
        found = self.starts.get(key)
        if found is None:
            offsets, length = place
            relative = [offset + before - top for offset, top in zip(offsets, tops, strict=True)]
            found = []
            for a, b in equal_runs(relative):
                low, high = max(relative[a], 0), min(relative[a] + length, size)
                if low < high:
                    found.append((a, b, low - relative[a], high - relative[a], low, high))
            self.starts[key] = found
        return found


class Chunk:
    """A block of positions, rows × columns of the grid of windows, on its way through the program.

    Parameters
    ----------
    clean
        The clean image's values.
    rows, columns
        The two sides.
    """

    def __init__(self, clean: Clean, rows: Side, columns: Side) -> None:
        self.clean = clean
        self.sides = (rows, columns)
        self.shape = (len(rows.positions), len(columns.positions))
        self.count = self.shape[0] * self.shape[1]
        self.patches: dict[int, Tensor] = {}
        self.full: dict[int, Tensor] = {}

    def place(self, index: int) -> tuple[Place, Place]:
        """Return where a value's rectangles are."""
        return self.sides[0].places[index], self.sides[1].places[index]

    def seen(
        self,
        source: int,
        output: int | None,
        windows: tuple[Window, Window],
        pads: tuple[int, int, int, int],
        fill: float,
    ) -> Tensor:
        """Return what the windows of the output's rectangle see of the source [n, …]."""
        wanted = tuple(w.needed(*place) for w, place in zip(windows, self.place(output or 0), strict=True))
        if not any(pads) and wanted == self.place(source):
            return self.patches[source]
        return self.gather(source, wanted[0], wanted[1], pads, fill)

    def aligned(self, source: int, output: int | None) -> Tensor:
        """Return the source on the output's rectangle."""
        wanted = self.place(output or 0)
        if wanted == self.place(source):
            return self.patches[source]
        return self.gather(source, *wanted)

    def shifted(self, source: int, output: int | None, by: tuple[int, int]) -> Tensor:
        """Return the source on the output's rectangle, the output being the source with padding before it."""
        here, there = self.place(source), self.place(output or 0)
        if all(a[1] == b[1] and tuple(o + d for o in a[0]) == b[0] for a, b, d in zip(here, there, by, strict=True)):
            return self.patches[source]
        return self._paste(self._copy(output or 0, *there, (0, 0, 0, 0), 0.0), source, *there, by)

    def of_map(self, values: Tensor, output: int | None) -> Tensor:
        """Return what a map [rows, columns] holds on the output's rectangle: [n, 1, h, w]."""
        (tops, height), (lefts, width) = self.place(output or 0)
        parts = [values[t : t + height, left : left + width] for t in tops for left in lefts]
        return torch.stack(parts)[:, None]

    def gather(
        self,
        source: int,
        rows: Place,
        columns: Place,
        pads: tuple[int, int, int, int] = (0, 0, 0, 0),
        fill: float = 0.0,
    ) -> Tensor:
        """Return rectangles of a source: clean, with the patch pasted in. Places count in the padded map."""
        return self._paste(self._copy(source, rows, columns, pads, fill), source, rows, columns, (pads[0], pads[2]))

    def _copy(self, index: int, rows: Place, columns: Place, pads: tuple[int, int, int, int], fill: float) -> Tensor:
        base = self.clean.map(index, pads, fill)
        (tops, height), (lefts, width) = rows, columns
        buffer = base.new_empty(*self.shape, height, width, *base.shape[2:])
        strides = base.stride()
        across = self.sides[1].gathers(lefts)
        for a, b, top, down in self.sides[0].gathers(tops):
            for c, d, left, step in across:
                view = base.as_strided(
                    (b - a, d - c, height, width, *base.shape[2:]),
                    (down * strides[0], step * strides[1], *strides),
                    base.storage_offset() + top * strides[0] + left * strides[1],
                )
                buffer[a:b, c:d].copy_(view)
        return buffer

    def _paste(self, buffer: Tensor, source: int, rows: Place, columns: Place, before: tuple[int, int]) -> Tensor:
        axes = self.clean.graph.values[source].axes or (0, 1)
        patch = self.patches[source].movedim(axes, (1, 2))
        patch = _blocks(patch, self.shape)
        here = self.place(source)
        across = self.sides[1].pastes(here[1], columns[0], columns[1], before[1])
        for a, b, s0, s1, d0, d1 in self.sides[0].pastes(here[0], rows[0], rows[1], before[0]):
            for c, d, s2, s3, d2, d3 in across:
                buffer[a:b, c:d, d0:d1, d2:d3].copy_(patch[a:b, c:d, s0:s1, s2:s3])
        return buffer.flatten(0, 1).movedim((1, 2), axes)

    def materialise(self, index: int) -> Tensor:
        """Return a value's full maps [n, …]."""
        found = self.full.get(index)
        if found is None:
            height, width = self.clean.map(index).shape[:2]
            found = self.gather(index, ((0,) * self.shape[0], height), ((0,) * self.shape[1], width))
            self.full[index] = found
        return found


def _blocks(patch: Tensor, shape: tuple[int, int]) -> Tensor:
    """Split the first dimension in two, which is a view whatever the strides are."""
    strides = patch.stride()
    size = (*shape, *patch.shape[1:])
    return patch.as_strided(size, (shape[1] * strides[0], *strides), patch.storage_offset())
