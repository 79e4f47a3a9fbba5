"""Occlusion by incremental inference: one clean forward pass, then only what each window changes."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from attribkit.engine.incremental.blocks import bytes_per_position, cut
from attribkit.engine.incremental.errors import NotReplayable, Rounded
from attribkit.engine.incremental.graph import ROWS, compare
from attribkit.engine.incremental.patches import Clean
from attribkit.engine.incremental.plan import Plan, together
from attribkit.engine.incremental.program import TOLERANCE, Program, tolerance
from attribkit.engine.incremental.record import Ref, record
from attribkit.engine.incremental.rewrite import rewrite
from attribkit.engine.incremental.spans import Spans
from attribkit.engine.incremental.workers import how_many, may_share, side_by_side

#: How much of the largest value of a batch stays in a processor's caches, so that more rows at once cost more.
CACHE = 20_000_000

#: From how many multiplications on, all windows' full maps together, workers are worth being set up.
_WORTH = 1e9

Grid = tuple[Spans, Spans]
Block = tuple[list[int], list[int]]  # rows and columns of the grid


@dataclass
class Image:
    """A clean image's values, and what the model itself returns for some of its occluded copies, to compare with.

    Nothing is given out before a result has been compared.
    """

    clean: Clean
    places: list[tuple[int, int]]
    expected: list[Tensor]
    compared: bool = False


class Incremental:
    """A model's forward pass, made ready for occluded copies of images of one size.

    Parameters
    ----------
    function
        ``rows -> anything``: the forward pass on rows that are all copies, occluded or not, of the first image; it
        returns whatever scores are read off.
    image
        The first image, [1, C, H, W].
    grid
        Where the windows start and end: rows, then columns.
    fill
        What they are filled with.
    max_bytes
        How much memory a block of positions may take.
    program
        What an earlier call found out about the forward pass; None: it is recorded.

    Attributes
    ----------
    program : Program
    first : Image
        The first image.

    Raises
    ------
    NotReplayable
        The forward pass cannot be replayed; the message says why.
    """

    def __init__(
        self,
        function: Callable[[Tensor], Any],
        image: Tensor,
        grid: Grid,
        fill: float,
        max_bytes: int,
        program: Program | None = None,
    ) -> None:
        if image.dtype not in TOLERANCE:
            raise NotReplayable(f"{image.dtype} is too coarse to compare scores in")
        self.grid, self.fill = grid, fill
        self.function = function
        if program is None:
            self.program, self._leaves, self.first = self._recorded(image)
        else:
            self.program = program
            self._leaves, self.first = self._again(image)
        self.plan = self.program.plan
        per_position = bytes_per_position(self.plan)
        self.workers = 1
        if image.device.type == "cpu":
            if self._may_share(image.device):
                self.workers = max(1, min(torch.get_num_threads(), max_bytes // max(3 * CACHE, per_position)))
            max_bytes = min(max_bytes // self.workers, 3 * CACHE)
        self.most = max(1, max_bytes // max(1, per_position))

    def returned(self) -> Any:
        """Return what ``function`` returns for the clean first image, one row.

        It is the program's: it rounds as the occluded rows do, the first time and ever after. Whoever reads scores off
        it may write to it: it is made anew each time.
        """
        leaves = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in self._leaves]
        return tree_unflatten(leaves, self.program.plan.graph.spec)

    def _may_share(self, device: torch.device) -> bool:
        """Tell whether blocks may be shared out among threads, and are worth it."""
        return may_share(device) and self.plan.work() * len(self._everywhere()) >= _WORTH

    def _recorded(self, image: Tensor) -> tuple[Program, list[Any], Image]:
        """Record the forward pass: return the program, the leaves of what it returns for the image, and the image."""
        checked = self._places_to_check()
        first, others = checked[: ROWS[0] - 1], checked[ROWS[0] - 1 :]
        one = record(self.function, torch.cat([image, self.occluded(image, first)]))
        many = record(self.function, self.occluded(image, others))
        compared = [
            place
            for place, (a, b) in enumerate(zip(one.leaves, many.leaves, strict=True))
            if isinstance(a, Ref) and isinstance(b, Ref) and one.values[a.index].varies
        ]
        expected = [
            torch.cat([one.values[one.leaves[k].index].held[1:], many.values[many.leaves[k].index].held])
            for k in compared
        ]
        for leaf in one.leaves:
            if not isinstance(leaf, (Ref, int, float, str, type(None))):
                raise NotReplayable(f"the forward pass returns a {type(leaf).__name__}, which cannot be looked into")
        graph = compare(one, many)
        close = tolerance(graph)
        for leaf in graph.returns:
            if isinstance(leaf, Ref) and not graph.values[leaf.index].rows:
                raise NotReplayable("what the forward pass returns is not row by row")
        rewrite(graph)
        own = [one.values[one.leaves[k].index].held[:1] for k in compared]
        del one, many
        program = Program(Plan(graph, *self.grid), compared, close)
        clean, leaves = _clean(program, image)
        program.compare(leaves, 0, own, 0)
        return program, leaves, Image(clean, checked, expected)

    def _again(self, image: Tensor) -> tuple[list[Any], Image]:
        """Run the model on one occluded copy; return the leaves of what the program returns for the image, and it."""
        program = self.program
        seed = zlib.crc32(image.detach().cpu().contiguous().numpy().tobytes())  # each image is compared at its own
        places = self._draw(1, seed, self._everywhere())
        leaves, spec = tree_flatten(self.function(self.occluded(image, places)))
        if spec != program.plan.graph.spec:
            raise NotReplayable("the forward pass returns something else than before")
        clean, returned = _clean(program, image)
        return returned, Image(clean, places, [leaves[k] for k in program.compared])

    def occluded(self, image: Tensor, places: Sequence[tuple[int, int]]) -> Tensor:
        """Return occluded copies of an image [1, C, H, W], one for each place (row, column) of the grid."""
        rows, columns = self.grid
        copies = image.repeat(len(places), 1, 1, 1)
        for copy, (y, x) in zip(copies, places, strict=True):
            copy[:, rows[0][y] : rows[1][y], columns[0][x] : columns[1][x]] = self.fill
        return copies

    def ready(self, image: Tensor, seed: int, wanted: Sequence[tuple[int, int]]) -> Image:
        """Return another image [1, C, H, W] made ready, with a window to compare drawn by ``seed`` among those wanted.

        Where few windows are looked at, one drawn among all would hardly ever be compared.
        """
        places = self._draw(1, seed, wanted)
        leaves = tree_flatten(self.function(self.occluded(image, places)))[0]
        return Image(_clean(self.program, image)[0], places, [leaves[k] for k in self.program.compared])

    def blocks(self, places: Sequence[tuple[int, int]]) -> list[Block]:
        """Return the blocks, rows × columns of the grid, that hold the given places; the largest come first."""
        by_row: dict[int, set[int]] = {}
        for y, x in places:
            by_row.setdefault(y, set()).add(x)
        groups: dict[tuple[int, ...], list[int]] = {}
        for y in sorted(by_row):
            groups.setdefault(tuple(sorted(by_row[y])), []).append(y)
        found = []
        side = max(1, math.isqrt(self.most))
        for across, down in groups.items():
            left = cut(self.plan, 1, list(across), side)
            found += [(a, b) for b in left for a in cut(self.plan, 0, down, max(1, self.most // side))]
        return sorted(found, key=lambda block: -len(block[0]) * len(block[1]))

    def run(self, image: Image, blocks: Sequence[Block]) -> Iterator[tuple[list[tuple[int, int]], Any]]:
        """Compute blocks of positions; yield places (row, column) and what the forward pass returns for them.

        Parameters
        ----------
        image
            `first`, or what `ready` returned.
        blocks
            As `blocks` made them.

        Raises
        ------
        NotReplayable
            Results differ from the model's own.
        """
        blocks = self._compared_first(image, blocks)
        try:
            yield from self._run(image, blocks)
        except Rounded:
            # some operations round by the number of threads, of which workers have fewer than the model had
            if self.workers == 1 or image.compared:
                raise
            self.workers = 1
            yield from self._run(image, blocks)

    def _run(self, image: Image, blocks: Sequence[Block]) -> Iterator[tuple[list[tuple[int, int]], Any]]:
        """Do what `run` does, by as many workers as there are."""
        waiting: list[dict[int, Tensor]] = []
        places: list[tuple[int, int]] = []
        # without a tail nothing is small: results go out block by block
        hold = self.plan.tail < len(self.plan.graph.nodes)
        held = 0
        with closing(self._on_blocks(image, blocks)) as computed:
            for number, ((rows, columns), found) in enumerate(zip(blocks, computed, strict=True)):
                waiting.append(found)
                places += [(y, x) for y in rows for x in columns]
                held += sum(v.numel() * v.element_size() for v in found.values())
                # nothing is given out within _alone(): whoever stops here may let go of this generator much later
                if hold and number + 1 < len(blocks) and held < 1 << 27:
                    yield [], None
                    continue
                with _alone():
                    leaves = self.plan.finish(together(waiting), len(places))
                    self._check(image, places, leaves)
                    returned = tree_unflatten(leaves, self.plan.graph.spec)
                yield places, returned
                waiting, places, held = [], [], 0

    def _compared_first(self, image: Image, blocks: Sequence[Block]) -> Sequence[Block]:
        """Return the blocks with one first that holds a place to compare, while no place of the image's has been."""
        if image.compared:
            return blocks
        first = [b for b in blocks if any(y in b[0] and x in b[1] for y, x in image.places)][:1]
        if not first:
            for _ in self.run(image, self.blocks(image.places)):
                pass
        return [*first, *(block for block in blocks if block not in first)]

    def _on_blocks(self, image: Image, blocks: Sequence[Block]) -> Generator[dict[int, Tensor]]:
        """Compute blocks of positions up to the tail, as many side by side as finish first."""

        def compute(block: Block) -> dict[int, Tensor]:
            with _alone():
                sides = self.plan.side(0, block[0]), self.plan.side(1, block[1])
                return self.plan.run(image.clean, *sides, self.fill)

        sizes = [len(rows) * len(columns) for rows, columns in blocks]
        return side_by_side(compute, blocks, how_many(sizes, torch.get_num_threads(), self.workers))

    def _places_to_check(self) -> list[tuple[int, int]]:
        """Return the first and the last place and some drawn ones."""
        everywhere = self._everywhere()
        return [everywhere[0], everywhere[-1], *self._draw(sum(ROWS) - 3, 0, everywhere)]

    def _everywhere(self) -> list[tuple[int, int]]:
        rows, columns = (len(side[0]) for side in self.grid)
        return [(y, x) for y in range(rows) for x in range(columns)]

    def _draw(self, count: int, seed: int, places: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        rows, columns = (len(side[0]) for side in self.grid)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + rows * 1009 + columns)
        return [places[i] for i in torch.randint(len(places), (count,), generator=generator).tolist()]

    def _check(self, image: Image, places: list[tuple[int, int]], leaves: list[Any]) -> None:
        rows = {place: row for row, place in enumerate(places)}
        for which, place in enumerate(image.places):
            if place in rows:
                self.program.compare(leaves, rows[place], image.expected, which)
                image.compared = True


def _clean(program: Program, image: Tensor) -> tuple[Clean, list[Any]]:
    """Run a program on an image as it is: return its maps, and the leaves of what the forward pass returns for it."""
    with _alone():
        maps, values = program.plan.maps(image)
        return Clean(program.plan.graph, maps), program.plan.finish(values, 1)


@contextmanager
def _alone() -> Iterator[None]:
    """Compute without gradients and without modes that watch the model's calls: they have no part in ours, and cost."""
    with torch.no_grad(), torch._C.DisableTorchFunction():
        yield
