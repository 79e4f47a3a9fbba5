"""Hypothesis strategies: networks, images, targets and whole cases. All draws are small, so that examples shrink."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from hypothesis import strategies as st

from attribkit.targets import Unit
from attribkit.testing.case import Case, Images
from attribkit.testing.draft import BLOCKS, STEPS, Draft, Draw
from attribkit.testing.net import Net
from attribkit.testing.operations import WRITINGS, Shape

SEEDS = st.integers(0, 99)


@st.composite
def _drafts(
    draw: Draw,
    steps: Sequence[str],
    without: Collection[str],
    levels: bool,
    classes: int | None,
    most: int,
    split: bool,
) -> Draft:
    shape = (draw(st.integers(1, 3)), draw(st.integers(4, 8)), draw(st.integers(4, 8)))
    draft = Draft(draw, shape, levels, without)
    x = 0
    for _ in range(draw(st.integers(1, most))):
        small = [each for each in steps if each not in BLOCKS or len(draft.ops) < 8]
        x = draft.step(x, small)
    draft.head(x, classes or draw(st.integers(2, 4)), split)
    return draft


def networks(
    *,
    steps: Sequence[str] = STEPS,
    without: Collection[str] = (),
    levels: bool = False,
    classes: int | None = None,
    most: int = 4,
    split: bool = False,
) -> st.SearchStrategy[Net]:
    """Return a strategy for networks.

    Parameters
    ----------
    steps
        The building blocks to draw from (`STEPS`).
    without
        Building blocks or rectifiers to leave out; ``RECTIFIERS + ("rectifier", "conv_rectifier")`` leaves out all
        rectifiers.
    levels
        Whether the images will hold ties; max pools are then put where ties are exact.
    classes
        The number of classes; None: 2 to 4.
    most
        The most building blocks.
    split
        Whether the classes are read straight off the places of a last map with three channels.
    """

    @st.composite
    def draw_network(draw: Draw) -> Net:
        draft = draw(_drafts(steps, without, levels, classes, most, split))
        return Net(draft.image, tuple(draft.ops), draw(SEEDS))

    return draw_network()


def image_batches(*, most: int = 3, kinds: Sequence[str] = ("normal", "positive")) -> st.SearchStrategy[Images]:
    """Return a strategy for batches of images."""
    return st.builds(Images, count=st.integers(1, most), seed=SEEDS, kind=st.sampled_from(kinds))


@st.composite
def cases(  # noqa: D417  hypothesis passes `draw`
    draw: Draw,
    *,
    steps: Sequence[str] = STEPS,
    without: Collection[str] = (),
    count: int | None = None,
    most_images: int = 3,
    levels: bool = True,
    units: bool | str = True,
    writings: Sequence[str] = WRITINGS,
    classes: int | None = None,
    split: bool = False,
    extra: int = 0,
    most: int = 4,
) -> Case:
    """Return a strategy for cases: a network in some writing, a batch and a target.

    Parameters
    ----------
    steps, without, classes, split, most
        As for `networks`.
    count, most_images
        How many images; None: 1 to ``most_images``.
    levels
        Whether some batches hold ties.
    units
        Whether some targets are units of a layer: a quarter; ``"often"``: half of them; ``"always"``: all are, where a
        layer has a name.
    writings
        The writings to draw from.
    extra
        How many further numbers from 0 to 99 to draw.
    """
    kind = draw(st.sampled_from(("normal", "positive", "levels") if levels else ("normal", "positive")))
    draft = draw(_drafts(steps, without, kind == "levels", classes, most, split))
    net = Net(draft.image, tuple(draft.ops), draw(SEEDS))
    batch = Images(count or draw(st.integers(1, most_images)), draw(SEEDS), kind)
    writing = draw(st.sampled_from(tuple(writings)))
    target: tuple[int, ...] | Unit = tuple(draw(st.integers(0, net.classes - 1)) for _ in range(batch.count))
    value = 0
    share = 1 if units == "often" else 3
    if units == "always" or (units and draw(st.integers(0, share)) == share):
        named = [(i, name) for i in range(1, len(net.ops)) if (name := net.module_name(i, writing))]
        if named:
            value, name = draw(st.sampled_from(named))
            target = _unit(draw, name, net.shapes[value], draft.ties[value] != "loose")
    numbers = tuple(draw(SEEDS) for _ in range(extra))
    return Case(net, writing, batch, target, value, numbers)


def _unit(draw: Draw, name: str, shape: Shape, strongest: bool) -> Unit:
    channel = draw(st.integers(0, shape[0] - 1))
    if len(shape) == 1:
        return Unit(name, channel, "all", layout="NC")
    position: Any = draw(st.sampled_from(("all", "max", "at") if strongest else ("all", "at")))
    if position == "at":
        position = (draw(st.integers(0, shape[1] - 1)), draw(st.integers(0, shape[2] - 1)))
    return Unit(name, channel, position)


__all__ = ["SEEDS", "STEPS", "cases", "image_batches", "networks"]
