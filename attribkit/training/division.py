"""Which images are trained with, and which are held out."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from attribkit.datasets import ImageSource, open_images, splits
from attribkit.errors import ImageError, InputError
from attribkit.training.recipe import Recipe

__all__ = ["Division", "divide"]

Classes = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Division:
    """The images of a run.

    Attributes
    ----------
    train, val
        Two sources, or twice the same.
    train_rows, val_rows
        Which of their images, int64 indices.
    train_classes, val_classes
        The images' classes, in the order of the rows.
    labels
        The class names.
    channels
        1 where the training images are grey bytes, else 3.
    test, test_classes
        The part "test" and its images' classes, where there is one and it was asked for.
    """

    train: ImageSource
    val: ImageSource
    train_rows: Classes
    val_rows: Classes
    train_classes: Classes
    val_classes: Classes
    labels: tuple[str, ...]
    channels: int
    test: ImageSource | None
    test_classes: Classes | None

    def identity(self) -> dict[str, Any]:
        """Return what tells one set of images from another."""
        drawn = hashlib.sha256()
        for part in (self.train_rows, self.train_classes, self.val_rows, self.val_classes):
            drawn.update(part.tobytes())
        return {
            "data": self.train.name,
            "images": len(self.train_rows),
            "val": self.val.name,
            "val_images": len(self.val_rows),
            "labels": list(self.labels),
            "classes_sha256": drawn.hexdigest(),
        }


def divide(data: str | ImageSource, val: str | ImageSource | None, recipe: Recipe, *, test: bool = True) -> Division:
    """Open the data of a run and hold validation images out; see `attribkit.training.train`.

    Raises
    ------
    InputError
        If images have no class, a class has too few images to hold one out, or the classes of two parts differ.
    """
    parts = splits(data) if isinstance(data, str) else ()
    train = data if isinstance(data, ImageSource) else open_images(data, "train" if parts else None)
    classes = train.classes()
    labels = train.labels or tuple(map(str, range(int(classes.max()) + 1)))
    if len(labels) < 2:
        raise InputError(f"{train.name}: has one class ({labels[0]}); a classifier needs two")
    counts = np.bincount(classes, minlength=len(labels))
    if counts.min() == 0:
        raise InputError(f"{train.name}: class {labels[int(counts.argmin())]!r} has no image")
    held = val if isinstance(val, ImageSource) else None
    if isinstance(val, str):
        known = splits(val)
        held = open_images(val, next((p for p in ("val", "test", "train") if p in known), None))
    elif val is None and "val" in parts and isinstance(data, str):
        held = _optional(data, "val")
    if held is not None:
        rows, val_rows, val_classes = np.arange(len(train)), np.arange(len(held)), _classes_as(train.name, labels, held)
    else:
        if not recipe.val_fraction > 0:
            raise InputError("val_fraction=0 leaves no image to validate with; give validation images (--val)")
        scarce = int(counts.argmin())
        if counts[scarce] < 2:
            raise InputError(
                f"{train.name}: class {labels[scarce]!r} has one image; at least 2 are needed, to hold one out for"
                " validation (or give validation images with --val)"
            )
        rows, val_rows = _hold_out(classes, recipe.val_fraction, recipe.seed)
        held, val_classes = train, classes[val_rows]
    channels = 1 if train.pixels is not None and train.pixels.ndim == 3 else 3
    last = _optional(data, "test") if test and isinstance(data, str) and "test" in parts else None
    # found out now: at the end of the training it would be too late
    last_classes = None if last is None else _classes_as(train.name, labels, last, " (--no-test leaves it out)")
    return Division(train, held, rows, val_rows, classes[rows], val_classes, labels, channels, last, last_classes)


def _classes_as(name: str, labels: tuple[str, ...], part: ImageSource, hint: str = "") -> Classes:
    """Return the classes of another part's images, if they are those of the training images.

    Classes are counted in the order of their names, so that one name more or less would make others of them all.
    """
    try:
        classes = part.classes()
    except InputError as error:
        raise InputError(f"{error}{hint}") from error
    own = part.labels or ()
    # without names of their own they are numbers, which mean the same with fewer of them
    if own != labels and not (own == labels[: len(own)] == tuple(map(str, range(len(own))))):
        raise InputError(
            f"{part.name}: its classes {_listed(own)} are not those of {name}: {_listed(labels)}; each part needs the"
            f" same classes{hint}"
        )
    return classes


def _listed(labels: tuple[str, ...], most: int = 10) -> str:
    shown = ", ".join(map(repr, labels[:most]))
    return shown + (f", … ({len(labels)} in all)" if len(labels) > most else "")


def _hold_out(classes: Classes, fraction: float, seed: int) -> tuple[Classes, Classes]:
    """Return the rows kept and those held out: of each class the same fraction, at least one and not all."""
    draws = np.random.default_rng([seed, 2]).random(len(classes))
    out = []
    for label in np.unique(classes):
        rows = np.flatnonzero(classes == label)
        count = min(max(1, round(fraction * len(rows))), len(rows) - 1)
        out.append(rows[np.argsort(draws[rows], kind="stable")[:count]])
    held = np.sort(np.concatenate(out))
    return np.setdiff1d(np.arange(len(classes)), held), held


def _optional(data: str, part: str) -> ImageSource | None:
    """Open a part that torchvision's constructor offers but need not be on disk."""
    try:
        return open_images(data, part)
    except (InputError, ImageError):
        if data.startswith("torchvision/"):
            return None
        raise
