"""The strongest few of every feature map, kept while a data set goes by."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(eq=False)
class Top:
    """The strongest activations of K feature maps so far, each of another image.

    They are in order: the stronger first, on ties the earlier image. Free places have image −1 and value −inf.

    Attributes
    ----------
    values : Tensor [K, top]
    images, positions : LongTensor [K, top]
        The image's index in the data set, and the flat position in the map.
    """

    values: Tensor
    images: Tensor
    positions: Tensor

    @classmethod
    def empty(cls, channels: int, top: int, dtype: torch.dtype) -> Top:
        """Return one with all places free."""
        none = torch.full((channels, top), -1, dtype=torch.long)
        return cls(torch.full((channels, top), -torch.inf, dtype=dtype), none, none.clone())

    def merged(self, other: Top) -> Top:
        """Return the strongest of both; an image that both hold counts once, so that merging again changes nothing."""
        top = self.values.shape[1]
        values = torch.cat([self.values, other.values], 1)
        images = torch.cat([self.images, other.images], 1)
        positions = torch.cat([self.positions, other.positions], 1)
        # by image, those of the same image side by side, the free places last; a stable sort by value keeps that order
        by_image = torch.where(images < 0, torch.iinfo(torch.long).max, images).argsort(dim=1, stable=True)
        values, images, positions = (t.gather(1, by_image) for t in (values, images, positions))
        repeated = torch.zeros_like(images, dtype=torch.bool)
        repeated[:, 1:] = images[:, 1:] == images[:, :-1]
        values = values.masked_fill(repeated, -torch.inf)
        images, positions = images.masked_fill(repeated, -1), positions.masked_fill(repeated, -1)
        # a true −inf of an image comes before a free place
        by_value = (images < 0).to(torch.uint8).argsort(dim=1, stable=True)
        values, images, positions = (t.gather(1, by_value) for t in (values, images, positions))
        order = values.argsort(dim=1, descending=True, stable=True)[:, :top]
        return Top(values.gather(1, order), images.gather(1, order), positions.gather(1, order))


def strongest_of(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Return the maximum of each map [B, K, P] and its flat position, the first on ties: [B, K] each."""
    values, positions = maps.max(2)
    if maps.device.type != "cpu":  # where several are equal, only the CPU is sure to return the first
        first = torch.arange(maps.shape[2], device=maps.device).expand(maps.shape)
        positions = first.masked_fill(maps != values[..., None], maps.shape[2]).amin(2)
    return values.cpu(), positions.cpu()
