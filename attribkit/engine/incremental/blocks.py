"""Cutting the grid of windows into blocks whose rectangles are of about one size."""

from __future__ import annotations

import math

from attribkit.engine.incremental.plan import COVERED, SIDES, Plan

#: What one operation on a small batch costs beside its arithmetic, in multiplications (measured on ResNet18).
_OVERHEAD = 2e7

#: What touching an element costs, in multiplications.
_TOUCH = 24.0

#: Blocks beyond this side gain nothing and leave the caches.
_SIDE = 9


def cut(plan: Plan, axis: int, positions: list[int], most: int) -> list[list[int]]:
    """Cut positions along an axis into groups, so that the work with each group's largest rectangle is least.

    Parameters
    ----------
    plan
        Says how long every rectangle is.
    axis
        0: rows, 1: columns.
    positions
        Ascending.
    most
        The largest group allowed.

    Returns
    -------
    list of list of int
        The groups, each ascending. Positions far apart may share one: near opposite borders rectangles are cut alike.
    """
    key = (axis, tuple(positions), most)
    found = plan.cuts.get(key)
    if found is None:
        if len(plan.cuts) >= SIDES:
            plan.cuts.clear()
        found = plan.cuts[key] = _cut(plan, axis, positions, most)
    return found


def _cut(plan: Plan, axis: int, positions: list[int], most: int) -> list[list[int]]:
    count = len(positions)
    weights, lengths = [], []
    for number, node in enumerate(plan.graph.nodes):
        rule, output = plan.rules.get(number), node.outputs[0]
        if rule is None or output is None:
            continue
        shape = plan.graph.values[output].shape
        lows, highs = plan.spans[1 - axis][output]
        other = sum(high - low for low, high in zip(lows, highs, strict=True))
        channels = math.prod(shape) / (plan.lengths[0][output] * plan.lengths[1][output])
        weights.append((rule.cost() + _TOUCH) * channels * other)
        lows, highs = plan.spans[axis][output]
        length = plan.lengths[axis][output]
        # where the other side is covered too, a rectangle of most of the map is all of it
        lengths.append([min(highs[i] - lows[i], length) for i in positions])
    overhead = _OVERHEAD * len(plan.graph.nodes) * max(1, len(plan.spans[1 - axis][0][0]) // _SIDE + 2)
    order = sorted(range(count), key=lambda i: sum(w * own[i] for w, own in zip(weights, lengths, strict=True)))
    sizes = [[own[i] for i in order] for own in lengths]
    best, choice = [0.0] + [math.inf] * count, [0] * (count + 1)
    for start in range(count):
        longest = [0] * len(sizes)
        for end in range(start + 1, min(start + min(most, _SIDE), count) + 1):
            longest = [max(a, size[end - 1]) for a, size in zip(longest, sizes, strict=True)]
            work = (end - start) * sum(w * a for w, a in zip(weights, longest, strict=True))
            if best[start] + work + overhead < best[end]:
                best[end], choice[end] = best[start] + work + overhead, start
    found, end = [], count
    while end:
        found.append(sorted(positions[i] for i in order[choice[end] : end]))
        end = choice[end]
    return found[::-1]


def bytes_per_position(plan: Plan) -> int:
    """Return about how much memory one position takes at its largest: three of the largest values."""
    largest = 0
    for index, info in plan.graph.values.items():
        size = math.prod(info.shape)
        if index in plan.lengths[0]:
            share = 1.0
            for axis in (0, 1):
                lows, highs = plan.spans[axis][index]
                share *= max(h - w for w, h in zip(lows, highs, strict=True)) / plan.lengths[axis][index]
            size = int(size * (share if share < COVERED else 1.0))
        largest = max(largest, size * info.dtype.itemsize)
    return 3 * largest
