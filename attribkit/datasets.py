"""Images to train on or to look through: a folder, idx files (MNIST's layout), one of torchvision's data sets on disk.

Needs Pillow and NumPy only; torchvision is imported when one of its data sets is asked for. Nothing is ever downloaded.
"""

from __future__ import annotations

import inspect
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from attribkit._idx import read_idx
from attribkit.errors import AttribkitError, ImageError, InputError, UnknownNameError, did_you_mean
from attribkit.images import IMAGE_SUFFIXES, find_images, read_image, to_rgb

__all__ = ["FASHION_LABELS", "First", "ImageSource", "open_images", "read_idx", "splits"]

#: Fashion-MNIST's classes, as its authors name them.
FASHION_LABELS = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

#: Where Debian's package ``dataset-fashion-mnist`` puts its files.
FASHION_FOLDER = Path("/usr/share/datasets/fashion-mnist")

#: What the parts of a data set are called in folders, each with the names that ask for it.
PARTS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
_IDX_STEMS = {"train": "train", "test": "t10k"}


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


def open_images(source: str | os.PathLike[str], split: str | None = None) -> ImageSource:
    """Open a set of images.

    Parameters
    ----------
    source
        - a folder of images. Sub-folders are classes, in sorted order, where no image lies beside them; otherwise the
          images, with those of sub-folders, have no classes. Sub-folders called train, val and test are its parts.
        - a folder with idx files, gzipped or not: ``train-images-idx3-ubyte`` and ``train-labels-idx1-ubyte`` are its
          part "train", ``t10k-…`` its part "test". Labels are optional; ``labels.txt`` may name the classes.
        - a pattern such as ``photos/**/*.jpg``, a list of paths ``NAME.txt``, or WebDataset shards
          ``NAME-{000..099}.tar``: see `attribkit.runs.list_images`.
        - ``"fashion-mnist"``: Fashion-MNIST where Debian's package dataset-fashion-mnist puts it.
        - ``"fashion-sample"``: the first 1,000 of Fashion-MNIST's test images, which come with attribkit.
        - ``"torchvision/NAME:ROOT"``: ``torchvision.datasets.NAME``, already on disk in the folder ROOT.
    split
        The part: "train", "val" or "test". None takes the test part, else val, else train, of a source that has parts,
        and all of one that has none.

    Returns
    -------
    ImageSource
        At least one image.

    Raises
    ------
    InputError
        If there is no such source or part, or it is empty.
    ImageError
        If a folder holds no image, or an idx file is damaged.
    UnknownNameError
        If torchvision has no such data set.
    """
    from attribkit.runs.listed import Listed, is_listed

    text = os.fspath(source)
    part = _part(split)
    if text == "fashion-mnist" and not os.path.isdir(text):
        if not FASHION_FOLDER.is_dir():
            raise InputError(
                f"fashion-mnist: {FASHION_FOLDER} is not there; install Debian's package dataset-fashion-mnist (apt"
                " install dataset-fashion-mnist), or give a folder with Fashion-MNIST's idx files"
            )
        return _open_idx(FASHION_FOLDER, part, text, FASHION_LABELS)
    if text == "fashion-sample" and not os.path.isdir(text):
        return _open_idx(Path(str(resources.files("attribkit") / "assets" / "fashion")), part, text, FASHION_LABELS)
    if text.startswith("torchvision/"):
        return _open_torchvision(text, part)
    if is_listed(text):
        if part is not None:
            raise InputError(f"data {text!r} has no part {part!r}; leave the split out")
        return Listed(text)
    folder = Path(text)
    if not os.path.isdir(folder):
        what = "is not a folder" if os.path.exists(folder) else "there is no such folder"
        raise InputError(
            f"data {text!r}: {what}; give a folder, fashion-mnist, fashion-sample or torchvision/NAME:ROOT"
        )
    if _idx_parts(folder):
        return _open_idx(folder, part, text, None)
    return _open_folder(folder, part, text)


def splits(source: str | os.PathLike[str]) -> tuple[str, ...]:
    """Return the parts that a source has, of "train", "val" and "test"; none for a plain folder of images.

    For a data set of torchvision's it is what its constructor offers, whether the files are there or not.
    """
    text = os.fspath(source)
    if text == "fashion-mnist" and not os.path.isdir(text):
        return tuple(_idx_parts(FASHION_FOLDER)) or ("train", "test")
    if text == "fashion-sample" and not os.path.isdir(text):
        return ("test",)
    if text.startswith("torchvision/"):
        return tuple(_torchvision_parts(_torchvision_class(text)[0]))
    folder = Path(text)
    if not os.path.isdir(folder):
        return ()
    return tuple(_idx_parts(folder) or _folder_parts(folder))


class _Idx(ImageSource):
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


class _Folder(ImageSource):
    """Image files, with a class for each where they lie in class folders."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        entries = sorted(entry for entry in _listed(folder) if not entry.name.startswith("."))
        loose = any(entry.suffix.lower() in IMAGE_SUFFIXES and not entry.is_dir() for entry in entries)
        folders = [] if loose else [entry for entry in entries if entry.is_dir()]
        if folders:
            per_class = [find_images(entry) for entry in folders]
            self.labels = tuple(entry.name for entry in folders)
            self._paths = [path for paths in per_class for path in paths]
            self._classes = [index for index, paths in enumerate(per_class) for _ in paths]
        else:
            self._paths, self._classes = find_images(folder), []
        self.ids = tuple(path.relative_to(folder).as_posix() for path in self._paths)

    def load(self, index: int) -> Image.Image:
        return read_image(self._paths[index])

    def label(self, index: int) -> int | None:
        return self._classes[index] if self._classes else None


class _Torchvision(ImageSource):
    """A data set of torchvision's: items (image, target)."""

    def __init__(self, name: str, part: str | None, items: Any) -> None:
        self.name = f"{name} ({part})" if part else name
        self._items = items
        count = len(items)
        if count == 0:
            raise InputError(f"{self.name}: holds no image")
        self.ids = tuple(f"{part or 'all'}-{index:0{len(str(count - 1))}d}" for index in range(count))
        # Some keep the targets apart, so that no image has to be decoded to learn its class.
        kept = next((getattr(items, key) for key in ("targets", "_labels", "labels", "y") if hasattr(items, key)), None)
        self._targets = kept if kept is not None and len(kept) == count and _is_class(kept[0]) else None
        named = getattr(items, "classes", None) or getattr(items, "categories", None)
        first = self.label(0)
        if first is not None:
            known = [names if isinstance(names, str) else ", ".join(map(str, names)) for names in named or ()]
            highest = int(max(self._targets)) if self._targets is not None else len(known) - 1
            self.labels = tuple(known) if len(known) > highest else tuple(map(str, range(highest + 1)))

    def load(self, index: int) -> Image.Image:
        try:
            image = self._items[index][0]
        except IndexError:
            raise
        except Exception as error:  # each data set has its own ways to fail on a damaged file
            raise ImageError(f"{self.name}: image {self.ids[index]} cannot be read: {error}") from error
        if not isinstance(image, Image.Image):
            raise ImageError(f"{self.name}: image {self.ids[index]} is a {type(image).__name__}, not a PIL image")
        return image if image.mode in ("L", "RGB") else to_rgb(image)

    def label(self, index: int) -> int | None:
        target = self._targets[index] if self._targets is not None else self._items[index][1]
        return int(target) if _is_class(target) else None


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


def _is_class(target: Any) -> bool:
    shape = getattr(target, "shape", ())
    return isinstance(target, int | np.integer) or (hasattr(target, "item") and len(shape) == 0)


def _part(split: str | None) -> str | None:
    if split is None:
        return None
    found = next((part for part, names in PARTS.items() if split in names), None)
    if found is None:
        raise UnknownNameError(f"split {split!r} is not known: {did_you_mean(str(split), PARTS)}")
    return found


def _choose(part: str | None, parts: Sequence[str], name: str) -> str:
    """Return the part asked for, or the one that is looked through by default."""
    if part is None:
        return next(known for known in ("test", "val", "train") if known in parts)
    if part not in parts:
        raise InputError(f"{name} has no part {part!r}; it has {' and '.join(parts)}")
    return part


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise InputError(f"data {str(folder)!r}: cannot be listed: {error.strerror or error}") from error


def _idx_parts(folder: Path) -> dict[str, Path]:
    """Return the parts that lie in a folder as idx files, each with its file of images."""
    found = {part: _idx_file(folder, f"{stem}-images", 3) for part, stem in _IDX_STEMS.items()}
    return {part: path for part, path in found.items() if path is not None}


def _idx_file(folder: Path, stem: str, dimensions: int) -> Path | None:
    kinds = (f"-idx{dimensions}-ubyte", f".idx{dimensions}-ubyte")
    candidates = (folder / f"{stem}{kind}{suffix}" for kind in kinds for suffix in ("", ".gz"))
    return next((path for path in candidates if path.is_file()), None)


def _open_idx(folder: Path, part: str | None, name: str, names: tuple[str, ...] | None) -> ImageSource:
    parts = _idx_parts(folder)
    if not parts:
        raise InputError(f"{name}: {folder} holds no idx files (train-images-idx3-ubyte, t10k-images-idx3-ubyte, …)")
    chosen = _choose(part, tuple(parts), name)
    listed = folder / "labels.txt"
    if names is None and listed.is_file():
        try:
            names = tuple(line.strip() for line in listed.read_text("utf-8").splitlines() if line.strip())
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{listed}: cannot be read: {error}") from error
    return _Idx(name, chosen, parts[chosen], _idx_file(folder, f"{_IDX_STEMS[chosen]}-labels", 1), names)


def _folder_parts(folder: Path) -> dict[str, Path]:
    """Return the parts of a folder: all its sub-folders, where they are called so and no image lies beside them."""
    entries = [entry for entry in _listed(folder) if not entry.name.startswith(".")]
    folders = {entry.name.lower(): entry for entry in entries if entry.is_dir()}
    known = {part: next((folders[n] for n in names if n in folders), None) for part, names in PARTS.items()}
    found = {part: path for part, path in known.items() if path is not None}
    loose = any(entry.suffix.lower() in IMAGE_SUFFIXES for entry in entries if not entry.is_dir())
    return found if len(found) == len(folders) and not loose else {}


def _open_folder(folder: Path, part: str | None, name: str) -> ImageSource:
    parts = _folder_parts(folder)
    if not parts:
        if part is not None:
            raise InputError(f"{name} has no part {part!r}: it is a folder without sub-folders train, val or test")
        return _Folder(folder, name)
    chosen = _choose(part, tuple(parts), name)
    return _Folder(parts[chosen], f"{name} ({chosen})")


def _torchvision_class(text: str) -> tuple[Any, str]:
    import torchvision.datasets

    name, colon, root = text.removeprefix("torchvision/").partition(":")
    known = [n for n in torchvision.datasets.__all__ if _is_image_set(getattr(torchvision.datasets, n))]
    if name not in known:
        raise UnknownNameError(f"torchvision has no data set of images {name!r}: {did_you_mean(name, known)}")
    if not colon or not root:
        raise InputError(f"data {text!r}: say where it lies: torchvision/{name}:FOLDER")
    return getattr(torchvision.datasets, name), root


def _is_image_set(found: Any) -> bool:
    if not inspect.isclass(found):
        return False
    parameters = inspect.signature(found).parameters
    # A loader makes of any file anything: that is what a folder is for. `frames_per_clip` marks videos.
    return "root" in parameters and "loader" not in parameters and "frames_per_clip" not in parameters


def _torchvision_parts(found: Any) -> dict[str, dict[str, Any]]:
    """Return the parts that a data set's constructor offers, each with the arguments that ask for it."""
    parameters = inspect.signature(found).parameters
    if "train" in parameters:
        return {"train": {"train": True}, "test": {"train": False}}
    key = next((key for key in ("split", "image_set") if key in parameters), None)
    return {} if key is None else {part: {key: part} for part in PARTS}


def _open_torchvision(text: str, part: str | None) -> ImageSource:
    found, root = _torchvision_class(text)
    if not os.path.isdir(root):
        raise InputError(f"data {text!r}: there is no folder {root!r}")
    offered = _torchvision_parts(found)
    if part is not None and not offered:
        raise InputError(f"{text} has no parts; leave the split out")
    wanted: list[str | None] = (
        [part] if part is not None else [*(p for p in ("test", "val", "train") if p in offered)] or [None]
    )
    reasons = []
    for candidate in wanted:  # a data set may lack a test part (ImageNet), which only trying tells
        try:
            items = found(root, **(offered[candidate] if candidate else {}))
        except AttribkitError:
            raise
        except Exception as error:
            reasons.append(" ".join(str(error).split()) or type(error).__name__)
            continue
        return _Torchvision(text, candidate, items)
    raise InputError(f"data {text!r}: torchvision cannot open it: {reasons[0]}")
