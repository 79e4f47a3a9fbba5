"""A program made ready to run on occluded copies of one image."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_unflatten

from attribkit.engine.incremental import kernels
from attribkit.engine.incremental.errors import NotReplayable
from attribkit.engine.incremental.graph import Graph, Node, Times
from attribkit.engine.incremental.patches import Chunk, Clean, Side
from attribkit.engine.incremental.record import Ref
from attribkit.engine.incremental.rules import Rule, affine, rule_for
from attribkit.engine.incremental.spans import Spans
from attribkit.engine.incremental.stages import Stage, stages

#: From this share of a map on, the whole of it is computed.
COVERED = 0.85

#: How many sides of blocks are kept.
SIDES = 256

#: What `reshape` does where memory lies otherwise than in the recording.
_VIEWS = frozenset({"view", "_unsafe_view"})

_PRODUCTS = frozenset({"linear", "addmm", "mm", "bmm", "baddbmm"})


class Plan:
    """What to compute, on rectangles as long as it pays and on full maps from there.

    Parameters
    ----------
    graph
        The program, rewritten.
    rows, columns
        Along each axis, where the windows start and end: two sequences of the same length.
    """

    def __init__(self, graph: Graph, rows: Spans, columns: Spans) -> None:
        self.graph = graph
        self.rules: dict[int, Rule] = {}
        self.spans: tuple[dict[int, Spans], dict[int, Spans]] = ({0: rows}, {0: columns})
        self.lengths: tuple[dict[int, int], dict[int, int]] = ({}, {})
        self._note_lengths(0)
        for number, node in enumerate(graph.nodes):
            found = rule_for(graph, node)
            if found is None:
                continue
            rule, axes = found
            output = node.outputs[0]
            if output is None:
                continue
            graph.values[output].axes = axes
            self.rules[number] = rule
            for axis in (0, 1):
                self.spans[axis][output] = rule.spans(axis, [self.spans[axis][i] for i in rule.inputs])
            self._note_lengths(output)
        self.last_use = {i: n for n, node in enumerate(graph.nodes) for i in node.inputs}
        self.last_use.update({i: len(graph.nodes) for i in graph.results()})
        self.tail = self._find_tail()
        #: How positions along an axis were cut into groups (see `blocks.cut`), for the next call.
        self.cuts: dict[tuple[int, tuple[int, ...], int], list[list[int]]] = {}
        self._sides: dict[tuple[int, tuple[int, ...]], Side] = {}
        self._stages: dict[tuple[int, int], list[Stage]] = {}

    def _note_lengths(self, index: int) -> None:
        info = self.graph.values[index]
        if info.axes is not None:
            for axis in (0, 1):
                self.lengths[axis][index] = info.shape[info.axes[axis]]

    def _find_tail(self) -> int:
        """Return from which node on there are no maps any more, so that all positions go through at once."""
        nodes = self.graph.nodes
        if any(self.graph.values[i].axes is not None for i in self.graph.results()):
            return len(nodes)
        start = len(nodes)
        for number in range(len(nodes) - 1, -1, -1):
            touched = [*nodes[number].inputs, *(o for o in nodes[number].outputs if o is not None)]
            infos = [self.graph.values[i] for i in touched if i in self.graph.values]
            if any(info.axes is not None or not info.rows or len(info.shape) > 2 for info in infos):
                break
            start = number
        return start

    def side(self, axis: int, positions: Sequence[int]) -> Side:
        """Return one side of a block, kept for the other blocks that share it."""
        key = (axis, tuple(positions))
        found = self._sides.get(key)
        if found is None:
            if len(self._sides) >= SIDES:  # a plan may serve many calls
                self._sides.clear()
                self._stages.clear()
            found = self._sides[key] = Side(axis, self.spans[axis], self.lengths[axis], list(positions))
        return found

    def bytes(self) -> int:
        """Return about how many bytes of weights its kernels lay out anew."""
        return sum(node.params["kernel"].bytes() for node in self.graph.nodes if node.op in ("conv", "linear"))

    def work(self) -> float:
        """Return how many multiplications full maps of one row take."""
        return sum(times for _, _, times in self._work())

    def fused(self) -> float:
        """Return which share of the multiplications is in kernels with folded batch norms or fused activations.

        These make full maps cheaper too.
        """
        work = list(self._work())
        fused = sum(times for _, node, times in work if node.op in ("conv", "linear") and node.params["kernel"].fuses())
        return fused / max(1.0, sum(times for _, _, times in work))

    def gain(self) -> float:
        """Return how many times fewer multiplications the changed rectangles need than full maps, over all windows.

        Counted are convolutions and products of matrices; what is done once for all positions counts in full.
        """
        windows = len(self.spans[0][0][0]) * len(self.spans[1][0][0])
        whole = changed = 0.0
        for number, node, work in self._work():
            output = node.outputs[0] or 0
            share = 1.0
            if number in self.rules:
                for axis in (0, 1):
                    lows, highs = self.spans[axis][output]
                    share *= sum(high - low for low, high in zip(lows, highs, strict=True)) / self.lengths[axis][output]
                share /= windows
            whole += work
            changed += work * share
        return whole / changed if changed else 1.0

    def _work(self) -> Iterator[tuple[int, Node, float]]:
        """Yield convolutions and products of matrices with their multiplications for one row."""
        for number, node in enumerate(self.graph.nodes):
            if node.outputs[0] is None:
                continue
            size = math.prod(self.graph.values[node.outputs[0]].shape)
            if node.op == "conv":
                yield number, node, float(size * node.params["kernel"].weight[0].numel())
            elif node.name in _PRODUCTS:
                yield number, node, float(size * self.graph.values[node.inputs[0]].shape[-1])

    def is_full(self, rows: Side, columns: Side, index: int) -> bool:
        """Tell whether a value's rectangles cover so much of the map that the map is computed."""
        covered = rows.places[index][1] * columns.places[index][1]
        return covered >= COVERED * self.lengths[0][index] * self.lengths[1][index]

    def run(self, clean: Clean, rows: Side, columns: Side, fill: float) -> dict[int, Tensor]:
        """Compute a block of positions up to the tail; return what the tail needs, rows × columns positions."""
        chunk = Chunk(clean, rows, columns)
        info = self.graph.values[0]
        (_, height), (_, width) = chunk.place(0)
        chunk.patches[0] = self._occluded(chunk, info.shape[1], height, width, fill)
        if self.is_full(rows, columns, 0):
            chunk.full[0] = chunk.materialise(0)
            del chunk.patches[0]
        whole_from = self._whole_from(rows, columns)
        for number, node in enumerate(self.graph.nodes[:whole_from]):
            rule, output = self.rules.get(number), node.outputs[0]
            on_patches = all(i in chunk.patches for i in node.inputs)
            if rule is not None and output is not None and on_patches and not self.is_full(rows, columns, output):
                chunk.patches[output] = rule.run(chunk)
            else:
                full = {i: chunk.full[i] if i in chunk.full else chunk.materialise(i) for i in node.inputs}
                chunk.full.update(self.call(node, full, chunk.count))
            self._forget(number, node, chunk.patches, chunk.full)
        for index in chunk.patches:
            chunk.materialise(index)
        return self._on_full_maps(whole_from, chunk.full, chunk.count)

    def _whole_from(self, rows: Side, columns: Side) -> int:
        """Return from which node on all of a block's values are full maps."""
        for number in range(self.tail - 1, -1, -1):
            output = self.graph.nodes[number].outputs[0]
            if number in self.rules and output is not None and not self.is_full(rows, columns, output):
                return number + 1
        return 0

    def _on_full_maps(self, start: int, full: dict[int, Tensor], count: int) -> dict[int, Tensor]:
        """Run the nodes from ``start`` up to the tail on ``count`` positions, in parts that stay in the caches."""
        values = full
        found = self._stages.get((start, count))
        if found is None:
            found = self._stages[start, count] = stages(self.graph, start, self.tail, count, self.last_use)
        for first, last, step in found:
            parts = []
            for position in range(0, count, step):
                part = {i: value[position : position + step] for i, value in values.items()} if step < count else values
                for number in range(first, last):
                    node = self.graph.nodes[number]
                    part.update(self.call(node, part, min(step, count - position)))
                    self._forget(number, node, part)
                parts.append(part)
            # what is not used any more has gone from each part
            values = together(parts)
        return values

    def _occluded(self, chunk: Chunk, channels: int, height: int, width: int, fill: float) -> Tensor:
        """Return the input's patches; a window cut at the border is shorter than the rectangle around it."""
        rows, columns = chunk.place(0)
        buffer = chunk._copy(0, rows, columns, (0, 0, 0, 0), 0.0)
        for i, y in enumerate(chunk.sides[0].positions):
            for j, x in enumerate(chunk.sides[1].positions):
                top, left = rows[0][i], columns[0][j]
                buffer[
                    i,
                    j,
                    self.spans[0][0][0][y] - top : self.spans[0][0][1][y] - top,
                    self.spans[1][0][0][x] - left : self.spans[1][0][1][x] - left,
                ] = fill
        return buffer.flatten(0, 1).permute(0, 3, 1, 2)

    def _forget(self, number: int, node: Node, *values: dict[int, Tensor]) -> None:
        for index in node.inputs:
            if self.last_use[index] == number:
                for held in values:
                    held.pop(index, None)

    def finish(self, values: dict[int, Tensor], count: int) -> list[Any]:
        """Run the tail on ``count`` positions and return the leaves of what the model returns."""
        values = dict(values)
        for node in self.graph.nodes[self.tail :]:
            values.update(self.call(node, values, count))
        return [values[leaf.index] if isinstance(leaf, Ref) else leaf for leaf in self.graph.returns]

    def maps(self, image: Tensor) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        """Run the program on an image [1, C, H, W] up to the tail.

        Returns
        -------
        maps : dict
            Every value that is a map of it.
        values : dict
            What the tail needs.
        """
        values = {0: image}
        found = {0: image}
        for number, node in enumerate(self.graph.nodes[: self.tail]):
            made = self.call(node, values, 1)
            values.update(made)
            found.update({i: value for i, value in made.items() if i in self.lengths[0]})
            self._forget(number, node, values)
        return found, values

    def call(self, node: Node, values: dict[int, Tensor], count: int) -> dict[int, Tensor]:
        """Run a node on full maps of ``count`` rows."""
        output = node.outputs[0]
        p = node.params
        if node.op != "call":
            if output is None:
                raise NotReplayable(f"{node.op} returns nothing")
            x = values[node.inputs[0]]
            if node.op in ("conv", "linear"):
                return {output: p["kernel"](x)}
            if node.op == "max_pool":
                pooled = F.max_pool2d(x, p["size"], p["stride"], p["padding"], p["dilation"], p["ceil"])
                return {output: pooled}
            if node.op == "avg_pool":
                return {
                    output: F.avg_pool2d(x, p["size"], p["stride"], p["padding"], p["ceil"], p["include"], p["divisor"])
                }
            if node.op == "affine":
                return {output: affine(node, x)}
            return {output: kernels.contrast_norm(x, **p)}
        leaves = [
            values[leaf.index] if isinstance(leaf, Ref) else leaf.factor * count if isinstance(leaf, Times) else leaf
            for leaf in node.leaves
        ]
        args, kwargs = tree_unflatten(leaves, node.spec)
        returned = torch.reshape(args[0], args[1]) if node.name in _VIEWS else node.function(*args, **kwargs)
        outputs = [returned] if node.single else tree_leaves(list(returned))
        # what nothing takes is not kept: nobody would let go of it, and it may have no rows
        return {i: v for i, v in zip(node.outputs, outputs, strict=True) if i is not None and i in self.last_use}


def together(parts: Sequence[dict[int, Tensor]]) -> dict[int, Tensor]:
    """Return the values of several lots of positions as those of all of them."""
    return parts[0] if len(parts) == 1 else {i: torch.cat([part[i] for part in parts]) for i in parts[0]}
