"""How many positions go at once through operations on full maps: as many as stay in a processor's caches."""

from __future__ import annotations

import math
from collections.abc import Mapping

from attribkit.engine.incremental.graph import Graph

#: About how large an operation's output is where several positions go at once. Less is no better for the caches and has
#: the weights read more often, which workers have to share the memory for (two of them on ResNet50: 9 % at 3 MB).
PART = 5_000_000

Stage = tuple[int, int, int]  # the first node, one past the last, and how many positions go at once


def stages(graph: Graph, start: int, stop: int, count: int, last_use: Mapping[int, int]) -> list[Stage]:
    """Cut a program's nodes where it pays to go on with more or fewer positions at once.

    Between stages the values that are alive are put together for all positions: only where these are small beside what
    lies around are there cuts.

    Parameters
    ----------
    graph
        The program.
    start, stop
        The nodes to cut.
    count
        How many positions there are.
    last_use
        For each value the last node that takes it.

    Returns
    -------
    list of Stage
    """
    sizes = {i: math.prod(info.shape) * info.dtype.itemsize for i, info in graph.values.items()}
    alive = {0} | {o for node in graph.nodes[:start] for o in node.outputs if o is not None}
    found: list[Stage] = []
    first, largest = start, 0

    def step() -> int:
        # values whose rows cannot be told apart hold the positions together
        parted = all(graph.values[i].rows for i in alive_at_first)
        return max(1, min(count, PART // max(1, largest))) if parted else count

    alive_at_first: list[int] = []
    for number in range(start, stop):
        alive = {i for i in alive if last_use.get(i, -1) >= number}
        if number == start:
            alive_at_first = sorted(alive)
        outputs = [i for i in graph.nodes[number].outputs if i in sizes]
        size = max((sizes[i] for i in outputs if i is not None), default=0)
        changes = 2 * size < largest or size > 2 * largest
        small = 3 * sum(sizes[i] for i in alive) < max(size, largest)
        if number > first and changes and small and all(graph.values[i].rows for i in alive):
            found.append((first, number, step()))
            first, largest, alive_at_first = number, 0, sorted(alive)
        largest = max(largest, size)
        alive.update(i for i in outputs if i is not None)
    if first < stop:
        # the tail takes all positions at once
        parted = all(graph.values[i].rows for i in alive if last_use.get(i, -1) >= stop)
        found.append((first, stop, step() if parted else count))
    return found
