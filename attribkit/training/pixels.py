"""From images to batches: resized and cut square as bytes, then cropped, flipped and centred.

What is random is drawn for a whole epoch at once from (seed, epoch), so that an image's crop depends on neither the
batch it is in, nor the process, nor what was done before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from attribkit.datasets import ImageSource
from attribkit.errors import InputError

__all__ = ["Augmentation", "Pixels", "ahead", "centre_crop", "order", "square", "ten_crops"]

Rows = npt.NDArray[np.int64]
T = TypeVar("T")

#: Resized images are kept in memory when they take no more than this many bytes.
CACHE_BYTES = 2 * 2**30


class Pixels:
    """Images of a source, each resized (smallest side to ``resize``, bilinear) and cut to the square in its centre.

    An idx source's bytes are resized a batch at a time when asked for, which costs little. Image files are decoded
    and resized by Pillow, and the result is kept where all of them fit into the budget.

    Parameters
    ----------
    source
        The images.
    rows
        Which of them, indices into ``source``.
    resize
        Height and width of the squares.
    channels
        1 (grey) or 3.
    budget
        The most bytes kept.
    """

    def __init__(self, source: ImageSource, rows: Rows, resize: int, channels: int, budget: int = CACHE_BYTES) -> None:
        if channels not in (1, 3):
            raise InputError(f"images have 1 channel (grey) or 3, the model takes in_chans={channels}")
        self.source, self.rows, self.resize, self.channels = source, rows, resize, channels
        fits = len(rows) * channels * resize * resize <= budget
        self._kept: Tensor | None = None
        if source.pixels is None and fits:
            self._kept = torch.zeros(len(rows), channels, resize, resize, dtype=torch.uint8)
            self._have = np.zeros(len(rows), dtype=bool)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.rows)

    def take(self, numbers: Rows) -> Tensor:
        """Return images by their numbers within ``rows``, uint8 [n, C, resize, resize].

        Raises
        ------
        ImageError
            If one cannot be read.
        """
        if self.source.pixels is not None:
            return self._resized(self.source.pixels[self.rows[numbers]])
        return torch.stack([self._one(int(number)) for number in numbers])

    def read(self) -> None:
        """Read now what is kept in memory anyway, so that an image that cannot be read is found before the work.

        Raises
        ------
        ImageError
            If one cannot be read.
        """
        if self._kept is not None:
            for number in range(len(self)):
                self._one(number)

    def _one(self, number: int) -> Tensor:
        if self._kept is not None and self._have[number]:
            return self._kept[number]
        image = self.source.load(int(self.rows[number]))
        values = square(image.convert("L" if self.channels == 1 else "RGB"), self.resize)
        if self._kept is not None:
            self._kept[number] = values
            self._have[number] = True
        return values

    def _resized(self, raw: npt.NDArray[np.uint8]) -> Tensor:
        images = torch.from_numpy(raw)
        images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2)
        if images.shape[1] != self.channels:
            images = _grey(images) if self.channels == 1 else images.expand(-1, 3, -1, -1)
        height, width = _resized_size(images.shape[2], images.shape[3], self.resize)
        if images.shape[2:] != (height, width):
            images = F.interpolate(images, size=(height, width), mode="bilinear", antialias=True, align_corners=False)
        top, left = round((height - self.resize) / 2), round((width - self.resize) / 2)
        return images[:, :, top : top + self.resize, left : left + self.resize]


class Augmentation:
    """Random crops and flips of one epoch.

    Parameters
    ----------
    count
        How many training images there are.
    slack
        By how many pixels a crop is smaller than its image.
    flip
        Whether images are flipped.
    seed, epoch
        What the draws are a function of, together with the image's number.
    """

    def __init__(self, count: int, slack: int, flip: bool, seed: int, epoch: int) -> None:
        draws = np.random.default_rng([seed, epoch, 1]).random((count, 3))
        self.top = (draws[:, 0] * (slack + 1)).astype(np.int64)
        self.left = (draws[:, 1] * (slack + 1)).astype(np.int64)
        self.flip = (draws[:, 2] < 0.5) & flip

    def __call__(self, images: Tensor, numbers: Rows, size: int, mean: Tensor | None = None) -> Tensor:
        """Crop and flip images [n, C, R, R] that have these numbers: [n, C, size, size], float where a mean is given.

        Parameters
        ----------
        images
            Of any dtype.
        numbers
            The images' numbers.
        size
            Height and width of the crops.
        mean
            A mean image [C, R, R], which is subtracted before the crop is taken.
        """
        dtype = images.dtype if mean is None else torch.float32
        out = torch.zeros(len(images), images.shape[1], size, size, dtype=dtype)
        for place, number in enumerate(numbers):
            top, left = int(self.top[number]), int(self.left[number])
            window = (slice(None), slice(top, top + size), slice(left, left + size))
            crop = images[place][window] if mean is None else images[place][window] - mean[window]
            out[place] = crop.flip(-1) if self.flip[number] else crop
        return out


def order(count: int, seed: int, epoch: int) -> Rows:
    """Return the order in which an epoch goes through the images: a permutation drawn from (seed, epoch)."""
    return np.random.default_rng([seed, epoch, 0]).permutation(count)


def centre_crop(images: Tensor, size: int) -> Tensor:
    """Return the centre [..., size, size] of images [..., H, W]."""
    top, left = round((images.shape[-2] - size) / 2), round((images.shape[-1] - size) / 2)
    return images[..., top : top + size, left : left + size]


def ten_crops(images: Tensor, size: int) -> list[Tensor]:
    """Return the four corners and the centre of images [n, C, H, W], and the same flipped: ten [n, C, size, size]."""
    height, width = images.shape[-2] - size, images.shape[-1] - size
    corners = [(0, 0), (0, width), (height, 0), (height, width)]
    five = [images[..., top : top + size, left : left + size] for top, left in corners]
    five.append(centre_crop(images, size))
    return five + [crop.flip(-1) for crop in five]


def ahead(make: Callable[[Rows], T], batches: Sequence[Rows], workers: int) -> Iterator[T]:
    """Yield ``make(batch)`` for each batch, in order, made ahead by ``workers`` threads (0: when asked for)."""
    if workers < 1:
        for batch in batches:
            yield make(batch)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="attribkit-batch")
    waiting: list[Future[T]] = []
    try:
        for batch in batches:
            waiting.append(pool.submit(make, batch))
            if len(waiting) > 2 * workers:
                yield waiting.pop(0).result()
        while waiting:
            yield waiting.pop(0).result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _resized_size(height: int, width: int, side: int) -> tuple[int, int]:
    shorter, longer = min(height, width), max(height, width)
    other = max(side, int(side * longer / shorter))
    return (side, other) if height <= width else (other, side)


def square(image: Image.Image, side: int) -> Tensor:
    """Return an image, smallest side resized to ``side``, cut to its centre square: uint8 [C, side, side]."""
    height, width = _resized_size(image.height, image.width, side)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    values = torch.from_numpy(np.array(image))
    values = values[None] if values.ndim == 2 else values.permute(2, 0, 1)
    return centre_crop(values, side).contiguous()


def _grey(images: Tensor) -> Tensor:
    """Return luma (ITU-R 601-2) as Pillow computes it, uint8 [n, 1, H, W], of RGB images."""
    red, green, blue = images.to(torch.int32).unbind(1)
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).to(torch.uint8)[:, None]
