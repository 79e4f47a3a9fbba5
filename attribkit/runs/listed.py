"""Listed images as a source for what goes over a data set by other ways than a run: mining features, say."""

from __future__ import annotations

import glob
import os

from PIL import Image

from attribkit.datasets import ImageSource
from attribkit.errors import ImageError
from attribkit.runs.listing import LISTS, is_archive, list_images
from attribkit.runs.reading import Opener

__all__ = ["Listed", "is_listed"]


class Listed(ImageSource):
    """What a pattern, a list or tar files name, as `attribkit.runs.list_images` does; without classes.

    Parameters
    ----------
    source
        One of these.

    Raises
    ------
    ImageError
        It names no image.
    """

    def __init__(self, source: str) -> None:
        self.name = source
        self._places = list(dict.fromkeys(list_images([source])))
        self.ids = tuple(place.image for place in self._places)
        if all(place.problem for place in self._places):
            first = self._places[0]
            raise ImageError(f"{first.image}: {first.problem}")
        self._opener = Opener()

    def load(self, index: int) -> Image.Image:
        """Return an image; see `ImageSource.load`."""
        place = self._places[index]
        try:
            return self._opener.read(place)
        except ImageError as error:
            raise ImageError(f"{place.image}: {error}") from error


def is_listed(source: str) -> bool:
    """Tell whether a source is a pattern, a list or a tar file."""
    if os.path.isdir(source):
        return False
    named = is_archive(source) or source.lower().endswith(LISTS)
    return named or (glob.has_magic(source) and not os.path.lexists(source))
