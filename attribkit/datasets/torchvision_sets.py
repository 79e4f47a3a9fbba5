"""Data sets of torchvision's that lie on disk; torchvision is imported when one is asked for."""

from __future__ import annotations

import inspect
import os
from typing import Any

import numpy as np
from PIL import Image

from attribkit.datasets.source import PARTS, ImageSource
from attribkit.errors import AttribkitError, ImageError, InputError, UnknownNameError, did_you_mean
from attribkit.images import to_rgb


class Torchvision(ImageSource):
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


def _class(text: str) -> tuple[Any, str]:
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


def _offered(found: Any) -> dict[str, dict[str, Any]]:
    """Return the parts that a data set's constructor offers, each with the arguments that ask for it."""
    parameters = inspect.signature(found).parameters
    if "train" in parameters:
        return {"train": {"train": True}, "test": {"train": False}}
    key = next((key for key in ("split", "image_set") if key in parameters), None)
    return {} if key is None else {part: {key: part} for part in PARTS}


def open_torchvision(text: str, part: str | None) -> ImageSource:
    """Open ``torchvision/NAME:ROOT``."""
    found, root = _class(text)
    if not os.path.isdir(root):
        raise InputError(f"data {text!r}: there is no folder {root!r}")
    offered = _offered(found)
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
        return Torchvision(text, candidate, items)
    raise InputError(f"data {text!r}: torchvision cannot open it: {reasons[0]}")


def torchvision_parts(text: str) -> tuple[str, ...]:
    """Return the parts that the constructor of ``torchvision/NAME:ROOT`` offers, whether the files are there or not."""
    return tuple(_offered(_class(text)[0]))


def _is_class(target: Any) -> bool:
    shape = getattr(target, "shape", ())
    return isinstance(target, int | np.integer) or (hasattr(target, "item") and len(shape) == 0)
