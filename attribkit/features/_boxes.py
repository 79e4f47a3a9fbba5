"""Parts of pictures: a JSON file of boxes, checked, and carried from an image's pixels to a model's input.

The file is ``{"IMAGE": {"PART": [top, left, bottom, right], …}, …}``: IMAGE is the image's id in its data source (a
path within the folder), a box is in the image's own pixels, upright, and half-open: rows top … bottom − 1.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from attribkit._kept import one_line
from attribkit.errors import InputError, InputTypeError, did_you_mean, is_int
from attribkit.features._inputs import Preprocess

__all__ = ["Boxes", "box_in_input", "check_boxes", "read_boxes"]

Box = tuple[int, int, int, int]
Boxes = dict[str, dict[str, Box]]


def read_boxes(path: str | os.PathLike[str], ids: Sequence[str] | None = None) -> Boxes:
    """Read and check a file of boxes.

    Parameters
    ----------
    path
        The JSON file.
    ids
        The images there are; None: any.

    Raises
    ------
    InputError
        The file cannot be read or breaks a rule of `check_boxes`; the message names image and part.
    """
    name = os.fspath(path)
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except OSError as error:
        raise InputError(f"boxes {name}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"boxes {name}: is no JSON: {one_line(error)}") from error
    try:
        return check_boxes(content, ids)
    except InputError as error:
        raise type(error)(f"boxes {name}: {one_line(error, 1000)}") from None


def check_boxes(content: Any, ids: Sequence[str] | None = None) -> Boxes:
    """Check a mapping of images to parts to boxes.

    Raises
    ------
    InputError
        It is no such mapping; fewer than two images; an unknown image; images with different parts; a box that is not
        four ints with 0 ≤ top < bottom and 0 ≤ left < right.
    """
    if not isinstance(content, Mapping):
        raise InputTypeError(f"must map images to parts to boxes, got {type(content).__name__}")
    if len(content) < 2:
        raise InputError(f"names {len(content)} image(s): a correspondence needs at least two")
    found: Boxes = {}
    for image, parts in content.items():
        if ids is not None and image not in ids:
            raise InputError(f"no image is called {image!r:.200}: {did_you_mean(str(image)[:200], ids)}")
        if not isinstance(parts, Mapping) or not parts:
            raise InputTypeError(f"{image}: must map parts to boxes [top, left, bottom, right], got {parts!r}")
        for part, box in parts.items():
            found.setdefault(str(image), {})[str(part)] = _box(box, f"{image}, {part}")
    first, *rest = found
    for image in rest:
        if found[image].keys() != found[first].keys():
            raise InputError(
                f"{image} has the parts {', '.join(sorted(found[image]))}, {first} has"
                f" {', '.join(sorted(found[first]))}: every image needs the same"
            )
    return found


def box_in_input(preprocess: Preprocess, size: tuple[int, int], box: Box, what: str = "box") -> Box:
    """Return where a box of an image ends up in the model's input.

    A white box on black goes through the preprocessing; the input's pixels that are more than half white are the box.
    So it holds for any resizing and cropping.

    Parameters
    ----------
    preprocess
        Makes an input [C, H, W] of an image.
    size
        The image's (width, height).
    box
        In the image's pixels.
    what
        How errors call it.

    Raises
    ------
    InputError
        The box reaches beyond the image, or nothing of it is left in the input.
    """
    width, height = size
    top, left, bottom, right = box
    if bottom > height or right > width:
        raise InputError(f"{what}: {list(box)} reaches beyond the image's {height} rows and {width} columns")
    drawn = np.zeros((height, width, 3), dtype=np.uint8)
    black, white = (preprocess(Image.fromarray(np.full_like(drawn, v)))[0].double() for v in (0, 255))
    drawn[top:bottom, left:right] = 255
    share = (preprocess(Image.fromarray(drawn))[0].double() - black) / (white - black)
    rows, columns = (share.amax(dim) > 0.5 for dim in (1, 0))
    if not bool(rows.any()) or not bool(columns.any()):
        raise InputError(f"{what}: {list(box)} is cut away by the model's preprocessing, or too small to be left in it")
    y, x = rows.nonzero().flatten(), columns.nonzero().flatten()
    return int(y[0]), int(x[0]), int(y[-1]) + 1, int(x[-1]) + 1


def _box(box: Any, what: str) -> Box:
    if not isinstance(box, list | tuple) or len(box) != 4 or not all(is_int(v) for v in box):
        raise InputTypeError(f"{what}: a box is [top, left, bottom, right], four ints, got {box!r}")
    top, left, bottom, right = (int(v) for v in box)
    if not (0 <= top < bottom and 0 <= left < right):
        raise InputError(f"{what}: a box needs 0 ≤ top < bottom and 0 ≤ left < right, got {list(box)}")
    return top, left, bottom, right
