"""Before the first batch: whether the store is of this run, what it lacks, and how it is cut into batches."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from attribkit.errors import AttribkitError, ImageError
from attribkit.runs.batches import MOST, MOST_ELSEWHERE, batch_size_for
from attribkit.runs.listing import list_images
from attribkit.runs.plan import Plan, check_same, identity
from attribkit.runs.ranks import Ranks
from attribkit.runs.reading import Opener
from attribkit.store.errors import StoreError
from attribkit.store.index import Index, clear_leftovers
from attribkit.store.layout import rank_files

if TYPE_CHECKING:
    from attribkit.models.loading import LoadedModel

__all__ = ["Settings", "set_up"]

_LOOKED_AT = 50
"""Images tried for one by which the batch size is measured."""


@dataclass(frozen=True)
class Settings:
    """What all processes of a run must know: threads, and the batches that are not finished."""

    threads: int
    pending: list[int]


def set_up(plan: Plan, loaded: LoadedModel, index: Index, team: Ranks) -> Settings:
    """Check that a store is of this run, put it in order, and list the images.

    Raises
    ------
    StoreError
        It is of another run.
    """
    device = next((t.device for t in loaded.model.parameters()), torch.device("cpu"))
    ours = identity(plan, loaded, device)
    theirs = index.note("run")
    if theirs is not None:
        if not isinstance(theirs, dict):
            raise StoreError(f"{index.path}: is damaged: it does not say what was run")
        check_same(theirs, ours, plan.out)
    size = _agreed(plan, index, "batch size", plan.batch_size)
    if size is None:
        size = _measured(plan, loaded, device, team)
    threads = _agreed(plan, index, "threads", plan.threads) or torch.get_num_threads()
    for path in rank_files(plan.out):  # of a run that was stopped
        index.merge(path)
        path.unlink()
        path.with_name(f"{path.name}-journal").unlink(missing_ok=True)
    clear_leftovers(plan.out)
    index.check_shards(plan.out)
    if plan.retry:
        index.take_back_failed()
    notes: dict[str, Any] = {"run": ours, "batch size": size, "threads": threads, "command": plan.command}
    notes["weights file"] = (
        os.path.abspath(plan.weights) if plan.weights and os.path.exists(plan.weights) else plan.weights
    )
    notes["labels"] = list(plan.labels) if plan.labels is not None else None
    index.begin(notes, list_images(plan.sources), size)
    return Settings(threads, index.pending())


def _agreed(plan: Plan, index: Index, key: str, asked: int | None) -> int | None:
    """Return the store's own number; where it has none, the one asked for.

    Raises
    ------
    StoreError
        Another one is asked for than the store's.
    """
    noted = index.note(key)
    if noted is None:
        return asked
    if type(noted) is not int or not 1 <= noted <= 1_000_000:
        raise StoreError(f"{index.path}: is damaged: its {key} is {noted!r:.40}")
    if asked is not None and asked != noted:
        raise StoreError(
            f"{str(plan.out)!r} holds another run: {key} was {noted} and is {asked}. Give the same, or another folder"
            " with --out"
        )
    return noted


def _measured(plan: Plan, loaded: LoadedModel, device: torch.device, team: Ranks) -> int:
    """Return a batch size by the memory that the first readable image takes."""
    like = next((t for t in loaded.model.parameters() if t.is_floating_point()), torch.zeros(()))
    for inputs in islice(_inputs(plan, loaded), 1):
        try:
            return batch_size_for(loaded.model, inputs.to(device, like.dtype), team.local)
        except Exception:  # the model raises on this image: the run will note it
            break
    return MOST.get(device.type, MOST_ELSEWHERE)


def _inputs(plan: Plan, loaded: LoadedModel) -> Iterator[Tensor]:
    opener = Opener()
    try:
        for place in islice(list_images(plan.sources), _LOOKED_AT):
            try:
                yield loaded.preprocess(opener.read(place))[None]
            except ImageError:
                continue
            except Exception as error:  # a preprocessing of the user's
                if isinstance(error, AttribkitError):
                    raise
    finally:
        opener.close()
