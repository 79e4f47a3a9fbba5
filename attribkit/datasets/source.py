"""What every set of images offers, and the names of its parts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from attribkit.errors import InputError, UnknownNameError, did_you_mean

#: What the parts of a data set are called in folders, each with the names that ask for it.
PARTS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}


class ImageSource(ABC):
    """Images in a fixed order, each with an id and perhaps a class.

    Attributes
    ----------
    name
        What it was opened as, and which part.
    ids
        One string an image, stable from call to call: a path within the folder, or the part and the index.
    labels
        The class names, or None where there are no classes.
    pixels
        All images as one array, uint8 [N, H, W] or [N, H, W, 3], where the source keeps them so; else None.
    """

    name: str
    ids: Sequence[str]
    labels: tuple[str, ...] | None = None
    pixels: npt.NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.ids)

    @abstractmethod
    def load(self, index: int) -> Image.Image:
        """Return an image, in mode ``"RGB"`` or ``"L"``.

        Raises
        ------
        ImageError
            If it cannot be read.
        """

    def label(self, index: int) -> int | None:
        """Return the class of an image, an index into `labels`; None where it has none."""
        return None

    def classes(self) -> npt.NDArray[np.int64]:
        """Return the class of every image, int64 [N].

        Raises
        ------
        InputError
            If an image has none.
        """
        found = [self.label(index) for index in range(len(self))]
        unlabelled = next((name for name, label in zip(self.ids, found, strict=True) if label is None), None)
        if unlabelled is not None:
            raise InputError(
                f"{self.name}: its images have no classes (the first: {unlabelled}); a folder needs one sub-folder of"
                " images a class"
            )
        return np.asarray(found, dtype=np.int64)

    def __repr__(self) -> str:
        """Show name and size."""
        kinds = f", {len(self.labels)} classes" if self.labels is not None else ""
        return f"{type(self).__name__}({self.name!r}, {len(self)} images{kinds})"


class First(ImageSource):
    """The first images of another source.

    Parameters
    ----------
    source
        The other.
    count
        How many at most.
    """

    def __init__(self, source: ImageSource, count: int) -> None:
        self._source = source
        self.name, self.labels, self.ids = source.name, source.labels, source.ids[:count]
        self.pixels = None if source.pixels is None else source.pixels[:count]

    def load(self, index: int) -> Image.Image:
        """Return an image; see `ImageSource.load`."""
        return self._source.load(range(len(self))[index])

    def label(self, index: int) -> int | None:
        """Return the class of an image."""
        return self._source.label(range(len(self))[index])


def part_named(split: str | None) -> str | None:
    """Return the part that a split's name asks for; None, which is all or the default, for None."""
    if split is None:
        return None
    found = next((part for part, names in PARTS.items() if split in names), None)
    if found is None:
        raise UnknownNameError(f"split {split!r} is not known: {did_you_mean(str(split), PARTS)}")
    return found


def choose(part: str | None, parts: Sequence[str], name: str) -> str:
    """Return the part asked for, or the one that is looked through by default."""
    if part is None:
        return next(known for known in ("test", "val", "train") if known in parts)
    if part not in parts:
        raise InputError(f"{name} has no part {part!r}; it has {' and '.join(parts)}")
    return part
