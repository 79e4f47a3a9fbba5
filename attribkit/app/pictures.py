"""The pictures there are to look at: samples that come with attribkit, and what somebody uploads."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from PIL import Image

from attribkit.app.view import UPLOADED
from attribkit.errors import ImageError, UnknownNameError, did_you_mean
from attribkit.images import decode_image, identify, read_image, sample_image_path

MAX_BYTES = 10 * 2**20
"""The largest file that may be uploaded."""

MAX_PIXELS = 25_000_000
"""The most pixels that an uploaded picture may have."""


@dataclass(frozen=True)
class Picture:
    """A picture.

    Attributes
    ----------
    key
        What a link calls it; `UPLOADED` for somebody's own.
    name
        What a reader calls it.
    kind
        ``"photograph"`` or ``"fashion"``: what a model must have been trained on to make sense of it; ``""``: unknown.
    open
        Returns it as RGB.
    imports, code
        Python lines: the second defines ``picture``, a PIL image, with what the first imports.
    """

    key: str
    name: str
    kind: str
    open: Callable[[], Image.Image] = field(repr=False)
    imports: str = field(default="", repr=False)
    code: str = field(default="", repr=False)


@lru_cache(maxsize=1)
def samples() -> dict[str, Picture]:
    """Return the samples by key: the photograph, and one of Fashion-MNIST's images for each of its classes."""
    from attribkit.datasets import open_images

    photograph = Picture(
        "photograph",
        "Chelsea the cat",
        "photograph",
        lambda: read_image(sample_image_path()),
        "from attribkit.images import read_image, sample_image_path",
        "picture = read_image(sample_image_path())",
    )
    found = {photograph.key: photograph}
    source = open_images("fashion-sample")
    classes = source.classes().tolist()
    names = source.labels or ()
    first = {label: classes.index(label) for label in sorted(set(classes), reverse=True)}
    for label, index in first.items():
        key = f"fashion-{index}"
        found[key] = Picture(
            key,
            f"{names[label]} (Fashion-MNIST)",
            "fashion",
            lambda index=index: source.load(index),  # type: ignore[misc]
            "from attribkit.datasets import open_images",
            f'picture = open_images("fashion-sample").load({index})',
        )
    return found


def sample(key: str) -> Picture:
    """Return a sample.

    Raises
    ------
    UnknownNameError
        There is none of that key.
    """
    known = samples()
    if key not in known:
        raise UnknownNameError(f"there is no sample picture {key!r}: {did_you_mean(key, known)}")
    return known[key]


def fitting(kind: str) -> Picture:
    """Return the first sample of a kind."""
    return next(picture for picture in samples().values() if picture.kind == kind)


def uploaded(path: str | Path, limit: int = MAX_BYTES, pixels: int = MAX_PIXELS) -> Picture:
    """Read what somebody uploaded, into memory.

    Parameters
    ----------
    path
        The file.
    limit, pixels
        The most bytes and pixels it may have.

    Raises
    ------
    ImageError
        It is larger, or no picture that can be read.
    """
    path = Path(path)
    with open(path, "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ImageError(f"{path.name}: is larger than {limit / 2**20:g} MB")
    if not data:
        raise ImageError(f"{path.name}: the file is empty (0 bytes)")
    width, height = identify(io.BytesIO(data), path.name).size  # what its head says: nothing is decoded yet
    if width * height > pixels:
        raise ImageError(f"{path.name}: is {width}×{height} pixels; at most {pixels / 1e6:g} million are taken here")
    decode_image(io.BytesIO(data), path.name)
    return Picture(
        UPLOADED,
        path.name,
        "",
        lambda: decode_image(io.BytesIO(data), path.name),
        "from attribkit.images import read_image",
        f"picture = read_image({path.name!r})  # the picture that was uploaded",
    )
