"""From what a user calls a set of images to the set, and the parts it has."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path

from attribkit.datasets.folder import folder_parts, open_folder
from attribkit.datasets.idx_folder import idx_parts, open_idx
from attribkit.datasets.source import ImageSource, part_named
from attribkit.datasets.torchvision_sets import open_torchvision, torchvision_parts
from attribkit.errors import InputError

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
    part = part_named(split)
    if text == "fashion-mnist" and not os.path.isdir(text):
        if not FASHION_FOLDER.is_dir():
            raise InputError(
                f"fashion-mnist: {FASHION_FOLDER} is not there; install Debian's package dataset-fashion-mnist (apt"
                " install dataset-fashion-mnist), or give a folder with Fashion-MNIST's idx files"
            )
        return open_idx(FASHION_FOLDER, part, text, FASHION_LABELS)
    if text == "fashion-sample" and not os.path.isdir(text):
        return open_idx(Path(str(resources.files("attribkit") / "assets" / "fashion")), part, text, FASHION_LABELS)
    if text.startswith("torchvision/"):
        return open_torchvision(text, part)
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
    if idx_parts(folder):
        return open_idx(folder, part, text, None)
    return open_folder(folder, part, text)


def splits(source: str | os.PathLike[str]) -> tuple[str, ...]:
    """Return the parts that a source has, of "train", "val" and "test"; none for a plain folder of images.

    For a data set of torchvision's it is what its constructor offers, whether the files are there or not.
    """
    text = os.fspath(source)
    if text == "fashion-mnist" and not os.path.isdir(text):
        return tuple(idx_parts(FASHION_FOLDER)) or ("train", "test")
    if text == "fashion-sample" and not os.path.isdir(text):
        return ("test",)
    if text.startswith("torchvision/"):
        return torchvision_parts(text)
    folder = Path(text)
    if not os.path.isdir(folder):
        return ()
    return tuple(idx_parts(folder) or folder_parts(folder))
