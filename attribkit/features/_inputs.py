"""Images as a model's inputs, batch by batch, whether they come as a tensor or from a data source."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from attribkit.checks import check_inputs
from attribkit.datasets import ImageSource, open_images
from attribkit.errors import InputError, as_int

__all__ = ["Inputs"]

Preprocess = Callable[[Any], Tensor]

#: Preprocessed images are kept for another pass up to this many bytes.
_KEPT = 512 * 2**20


class Inputs:
    """Inputs of a model with an id and perhaps a class each.

    Parameters
    ----------
    source
        A float tensor [N, C, H, W], an `ImageSource`, or what `attribkit.datasets.open_images` opens.
    preprocess
        Makes an input [C, H, W] of a PIL image; not needed for a tensor.
    limit
        Take the first so many images; None: all.
    split
        Which part of a source that is opened by name.
    device
        Where the batches go.

    Raises
    ------
    InputError
        The source is none of these, ``preprocess`` is missing, or ``limit`` is below 1.
    """

    def __init__(
        self,
        source: Tensor | ImageSource | str | os.PathLike[str],
        preprocess: Preprocess | None = None,
        *,
        limit: int | None = None,
        split: str | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if limit is not None and as_int("limit", limit) < 1:
            raise InputError(f"limit must be a positive int or None, got {limit!r}")
        self._tensor: Tensor | None = None
        self._images: ImageSource | None = None
        if isinstance(source, Tensor):
            check_inputs(source)
            self._tensor = source.detach()
            count = len(source)
            self.ids: Sequence[str] = [str(i) for i in range(count)]
        else:
            images = source if isinstance(source, ImageSource) else open_images(source, split)
            if preprocess is None:
                raise InputError("images need the model's preprocessing: pass a LoadedModel, or a tensor of inputs")
            self._images, count = images, len(images)
            self.ids = images.ids
        self.name = "inputs" if self._images is None else self._images.name
        self.labels = None if self._images is None else self._images.labels
        self._preprocess = preprocess
        self._device = torch.device(device)
        self._count = count if limit is None else min(limit, count)
        self._kept: dict[int, Tensor] = {}
        self._bytes = 0

    def __len__(self) -> int:
        """Return the number of inputs."""
        return self._count

    def one(self, index: int) -> Tensor:
        """Return one input [1, C, H, W] on the device; `ImageError` where the image cannot be read."""
        return self.batch(range(index, index + 1))

    def batch(self, rows: range) -> Tensor:
        """Return the inputs of some rows [B, C, H, W] on the device."""
        if self._tensor is not None:
            return self._tensor[rows.start : rows.stop].to(self._device)
        return torch.stack([self._load(i) for i in rows]).to(self._device)

    def rows(self, size: int) -> list[range]:
        """Return the rows cut into batches of at most ``size``."""
        return [range(start, min(start + size, self._count)) for start in range(0, self._count, size)]

    def label(self, index: int) -> int | None:
        """Return the class of an image, None where it has none."""
        return None if self._images is None else self._images.label(index)

    def _load(self, index: int) -> Tensor:
        found = self._kept.get(index)
        if found is None:
            images, preprocess = self._images, self._preprocess
            if images is None or preprocess is None:
                raise InputError("there are no images to load")
            found = preprocess(images.load(index))
            self._bytes += found.numel() * found.element_size()
            if self._bytes <= _KEPT:
                self._kept[index] = found
        return found
