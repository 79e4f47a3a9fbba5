"""Which images are measured, and which of them stand in grids."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from attribkit import LoadedModel
from attribkit.datasets import ImageSource
from attribkit.errors import ImageError, InputError
from attribkit.progress import track
from attribkit_quantus import grids as grid_game
from attribkit_quantus.grids import Grids
from attribkit_quantus.scoring import scores
from attribkit_quantus.settings import Settings

LOOK = 10
"""Images for the grids are looked for among so many times the images that are measured: a source may hold millions."""


@dataclass
class Sample:
    """Images with the classes that are explained.

    Attributes
    ----------
    ids
        The images' names.
    inputs
        [N, C, H, W] on the model's device.
    classes
        The class that the model gives each image [N].
    grids, grid_ids
        The grids and the names of the images in their cells [G][side²]; None where none was asked for or possible.
    skipped
        Images that cannot be read, and why.
    facts, notes
        See `attribkit_quantus.Evaluation`.
    """

    ids: list[str]
    inputs: Tensor
    classes: Tensor
    grids: Grids | None = None
    grid_ids: list[list[str]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def draw(loaded: LoadedModel, source: ImageSource, settings: Settings) -> Sample:
    """Draw the images in a random order, the first of them to be measured; and grids in the same order.

    Raises
    ------
    InputError
        No image can be read, or they come out of the preprocessing with different sizes.
    """
    reader = _Reader(loaded, source, settings)
    first: list[_Candidate] = []
    for candidate in track(reader.rest(), "reading", total=min(settings.images, len(source))):
        first.append(candidate)
        if len(first) == settings.images:
            break
    if not first:
        raise InputError(f"{source.name}: no image can be read; the first: {reader.skipped[0]}")
    inputs = torch.stack([candidate.input for candidate in first]).to(reader.device)
    found = Sample([c.name for c in first], inputs, torch.tensor([c.best for c in first], device=reader.device))
    found.facts["images"] = f"{len(first)} of {len(source)}, drawn at random"
    known = [candidate.right for candidate in first if candidate.right is not None]
    if known:
        found.facts["right answers among them"] = f"{np.mean(known):.0%}"
    if "grid_pointing_game" in settings.parts:
        _add_grids(found, reader, first, settings)
    found.skipped = reader.skipped
    return found


@dataclass(frozen=True)
class _Candidate:
    name: str
    input: Tensor
    best: int
    probability: float
    right: bool | None


class _Reader:
    """Reads a source's images in a random order and asks the model what they are."""

    def __init__(self, loaded: LoadedModel, source: ImageSource, settings: Settings) -> None:
        self.loaded, self.source, self.batch_size = loaded, source, settings.batch_size
        self.device = next(iter(loaded.model.parameters()), torch.empty(0)).device
        self.skipped: list[str] = []
        self.looked = 0
        self._order = iter(np.random.default_rng(settings.seed).permutation(len(source)))
        self._waiting: list[_Candidate] = []

    def rest(self) -> Iterator[_Candidate]:
        """Give the images that were not given yet."""
        while True:
            if not self._waiting:
                self._waiting = self._batch()
            if not self._waiting:
                return
            self.looked += 1
            yield self._waiting.pop(0)

    def _batch(self) -> list[_Candidate]:
        names, inputs, labels = [], [], []
        for index in self._order:
            try:
                inputs.append(self.loaded.preprocess(self.source.load(int(index))))
            except ImageError as error:
                name = self.source.ids[index]
                self.skipped.append(f"{name}: {str(error).removeprefix(f'{name}: ')}")
                continue
            names.append(self.source.ids[index])
            labels.append(self.source.label(int(index)))
            if len(inputs) == self.batch_size:
                break
        if not inputs:
            return []
        if len({tuple(one.shape) for one in inputs}) > 1:
            raise InputError("the model's preprocessing gives inputs of different sizes, which cannot be compared")
        found = scores(self.loaded.model, torch.stack(inputs).to(self.device), self.batch_size).softmax(1).cpu()
        # labels mean the model's classes only where there are as many of them
        same = self.source.labels is not None and len(self.source.labels) == found.shape[1]
        best = found.max(1)
        return [
            _Candidate(name, one, int(index), float(p), None if not same or label is None else label == int(index))
            for name, one, label, p, index in zip(names, inputs, labels, best.values, best.indices, strict=True)
        ]


def _add_grids(found: Sample, reader: _Reader, first: list[_Candidate], settings: Settings) -> None:
    cells = settings.grid**2
    wanted = max(1, settings.images // cells)
    usable: list[_Candidate] = []
    members = np.zeros((0, cells), dtype=np.int64)
    step = max(wanted * cells // 4, cells)
    for candidate in _all(first, reader):
        if reader.looked > LOOK * settings.images:
            break
        if candidate.probability < settings.confidence or candidate.right is False:
            continue
        usable.append(candidate)
        if len(usable) >= wanted * cells and len(usable) % step == 0:
            members = grid_game.arrange([c.best for c in usable], cells, wanted, settings.seed)
            if len(members) == wanted:
                break
    if len(members) < wanted:
        members = grid_game.arrange([c.best for c in usable], cells, wanted, settings.seed)
    rule = f"a probability of {settings.confidence:g} or more"
    if any(candidate.right is not None for candidate in first):
        rule = f"the right class and {rule}"
    if not len(members):
        kinds = len({candidate.best for candidate in usable})
        found.notes.append(
            f"No grid pointing game: a grid takes {cells} images of different classes to which the model gives {rule}; "
            f"there are {len(usable)} such images, of {kinds} class{'es' * (kinds != 1)}."
        )
        return
    inputs = torch.stack([candidate.input for candidate in usable]).to(reader.device)
    classes = torch.tensor([candidate.best for candidate in usable], device=reader.device)
    flat = torch.as_tensor(members, device=reader.device)
    found.grids = Grids(grid_game.build(inputs, members, settings.grid), classes[flat], members)
    found.grid_ids = [[usable[index].name for index in grid] for grid in members]
    found.facts["grids"] = (
        f"{len(members)} of {settings.grid}×{settings.grid} images with {rule}; {reader.looked} looked at"
    )
    answers = scores(reader.loaded.model, found.grids.images, settings.batch_size).softmax(1)
    share = answers.gather(1, found.grids.classes).sum(1).mean()
    found.facts["probability of a grid's classes together"] = f"{float(share):.0%} on average"
    if len(members) < wanted:
        found.notes.append(f"Only {len(members)} of {wanted} grids could be filled with images of different classes.")


def _all(first: list[_Candidate], reader: _Reader) -> Iterator[_Candidate]:
    yield from first
    yield from reader.rest()
