"""How large the pictures of a page may be, so that a page of any number of images stays one that a browser opens."""

from __future__ import annotations

from dataclasses import dataclass

PAGE_BYTES = 32 * 10**6
"""What the pictures of a page of many images may come to."""

CELL_BYTES = 420_000
"""What those of one method and one image may come to: four on one image stay below 2 MB."""

LEAST, MOST = 64, 640
"""The longest side of a picture in pixels is never less, nor that of a photograph more."""

_BYTES_PER_PIXEL = 6.0
"""Of a map in all its pictures, at worst: 8 bits signed, 8 bits strength, and 24 bits in colour, none of which can be
compressed when the map is noise, and a third more for base64; pictures that are made of squares come to nothing."""

_PHOTOGRAPH_BYTES = 0.25 * PAGE_BYTES
_PER_PHOTOGRAPH_PIXEL = 0.7
"""Of a JPEG, in base64."""


@dataclass(frozen=True)
class Sizes:
    """The longest sides, in pixels: of maps and of what the model was shown, and of the photograph."""

    map: int
    photograph: int

    @classmethod
    def of(cls, images: int, methods: int) -> Sizes:
        """Return the sizes for a page of so many images, each explained by so many methods."""
        images, methods = max(1, images), max(1, methods)
        maps = _side(min(CELL_BYTES, PAGE_BYTES / (images * methods)) / _BYTES_PER_PIXEL)
        return cls(maps, _side(_PHOTOGRAPH_BYTES / images / _PER_PHOTOGRAPH_PIXEL))


def _side(pixels: float) -> int:
    return int(min(MOST, max(LEAST, pixels**0.5)))
