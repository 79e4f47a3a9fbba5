"""Folders with idx files, MNIST's layout, as sets of images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from attribkit.datasets._idx import read_idx
from attribkit.datasets.source import ImageSource, choose
from attribkit.errors import ImageError, InputError

_STEMS = {"train": "train", "test": "t10k"}


class Idx(ImageSource):
    """Images of an idx file."""

    def __init__(self, name: str, part: str, images: Path, labels: Path | None, names: tuple[str, ...] | None) -> None:
        pixels = read_idx(images)
        if pixels.ndim not in (3, 4) or (pixels.ndim == 4 and pixels.shape[3] != 3):
            raise ImageError(f"{images}: holds {'×'.join(map(str, pixels.shape))} values, not images [N, H, W]")
        if pixels.size == 0:
            raise InputError(f"{images}: holds no image: {'×'.join(map(str, pixels.shape))}")
        self.name, self.pixels, self._images = f"{name} ({part})", pixels, pixels
        digits = len(str(len(pixels) - 1))
        self.ids = tuple(f"{part}-{index:0{digits}d}" for index in range(len(pixels)))
        self._classes: npt.NDArray[np.int64] | None = None
        if labels is None:
            return
        found = read_idx(labels)
        if found.shape != pixels.shape[:1]:
            raise ImageError(f"{labels}: holds {'×'.join(map(str, found.shape))} labels for {len(pixels)} images")
        self._classes = found.astype(np.int64)
        highest = int(found.max())
        self.labels = names if names is not None else tuple(map(str, range(highest + 1)))
        if highest >= len(self.labels):
            raise ImageError(f"{labels}: holds the label {highest}; there are {len(self.labels)} class names")

    def load(self, index: int) -> Image.Image:
        return Image.fromarray(self._images[index])

    def label(self, index: int) -> int | None:
        return None if self._classes is None else int(self._classes[index])

    def classes(self) -> npt.NDArray[np.int64]:
        return super().classes() if self._classes is None else self._classes.copy()


def idx_parts(folder: Path) -> dict[str, Path]:
    """Return the parts that lie in a folder as idx files, each with its file of images."""
    found = {part: _file(folder, f"{stem}-images", 3) for part, stem in _STEMS.items()}
    return {part: path for part, path in found.items() if path is not None}


def _file(folder: Path, stem: str, dimensions: int) -> Path | None:
    kinds = (f"-idx{dimensions}-ubyte", f".idx{dimensions}-ubyte")
    candidates = (folder / f"{stem}{kind}{suffix}" for kind in kinds for suffix in ("", ".gz"))
    return next((path for path in candidates if path.is_file()), None)


def open_idx(folder: Path, part: str | None, name: str, names: tuple[str, ...] | None) -> ImageSource:
    """Open a folder with idx files, as its `name`; ``labels.txt`` may hold the classes' `names`."""
    parts = idx_parts(folder)
    if not parts:
        raise InputError(f"{name}: {folder} holds no idx files (train-images-idx3-ubyte, t10k-images-idx3-ubyte, …)")
    chosen = choose(part, tuple(parts), name)
    listed = folder / "labels.txt"
    if names is None and listed.is_file():
        try:
            names = tuple(line.strip() for line in listed.read_text("utf-8").splitlines() if line.strip())
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{listed}: cannot be read: {error}") from error
    return Idx(name, chosen, parts[chosen], _file(folder, f"{_STEMS[chosen]}-labels", 1), names)
