"""Picking units out of a layer's output, in any layout."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attribkit.errors import InputError


def select(value: Tensor, channel: int, layout: str) -> Tensor:
    """Return one feature map of every sample, positions in row order: [N, positions]."""
    return value.select(layout.index("C"), channel).reshape(len(value), -1)


def strongest(value: Tensor, channel: int, layout: str) -> Tensor:
    """Return each sample's strongest position of a map, the first on ties: LongTensor [N]."""
    maps = select(value, channel, layout)
    # argmax leaves open which of several maxima it returns on some devices; the first True of a mask does not
    return (maps == maps.amax(1, keepdim=True)).to(torch.uint8).argmax(1)


def unit_mask(value: Tensor, channel: int, layout: str, positions: Tensor | None) -> Tensor:
    """Return a tensor like ``value`` that is 1 at a channel's positions [N] (None: all of them) and 0 elsewhere."""
    maps = select(value, channel, layout)
    if positions is None:
        chosen = torch.ones_like(maps)
    else:
        chosen = torch.zeros_like(maps).scatter(1, positions[:, None], 1.0)
    dim = layout.index("C")
    spatial = [size for i, size in enumerate(value.shape) if i != dim]
    mask = torch.zeros_like(value, memory_format=torch.contiguous_format)
    mask.select(dim, channel).copy_(chosen.reshape(spatial))
    return mask.detach()


@dataclass(frozen=True)
class Grid:
    """How a layer's positions are counted: a map of rows and columns after some prefix tokens.

    Attributes
    ----------
    rows, columns : int or None
        The map's size; None where the tokens form no grid that is known.
    prefix : int
        Tokens before the map's first (class and register tokens).
    count : int
        All positions, prefix tokens included.
    """

    rows: int | None
    columns: int | None
    prefix: int
    count: int

    def flat(self, position: int | tuple[int, int], layer: str) -> int:
        """Return the flat index of a position; `InputError` where the layer has none such."""
        if isinstance(position, int):
            if (
                self.rows is not None
                and self.prefix == 0
                and self.columns is not None
                and self.rows * self.columns == self.count
            ):
                kind = "positions"
            else:
                kind = "tokens"
            if not 0 <= position < self.count:
                raise InputError(f"position {position} is out of range: layer {layer!r} has {self.count} {kind}")
            return position
        if self.rows is None or self.columns is None:
            raise InputError(
                f"position {position}: the {self.count} positions of layer {layer!r} form no grid; give an index"
            )
        row, column = position
        if not (0 <= row < self.rows and 0 <= column < self.columns):
            raise InputError(
                f"position {position} is out of range: layer {layer!r} has a map of {self.rows}×{self.columns}"
            )
        return self.prefix + row * self.columns + column


def token_grid(value: Tensor, layout: str, model: nn.Module, image: tuple[int, ...] | None = None) -> Grid:
    """Return the grid of a layer's output: its own map, or the one its tokens were cut from.

    Parameters
    ----------
    value
        The layer's output.
    layout
        Its layout.
    model
        Its ``num_prefix_tokens`` and ``patch_embed`` (timm) say how tokens are counted, where it has them.
    image
        Height and width of the model's input.
    """
    shape = value.shape
    if layout == "NCHW":
        return Grid(shape[2], shape[3], 0, shape[2] * shape[3])
    if layout == "NHWC":
        return Grid(shape[1], shape[2], 0, shape[1] * shape[2])
    if layout == "NC":
        return Grid(1, 1, 0, 1)
    count = shape[1]
    declared = getattr(model, "num_prefix_tokens", None)
    embed = getattr(model, "patch_embed", None)
    size, patch = (_pair(getattr(embed, name, None)) for name in ("grid_size", "patch_size"))
    for before in dict.fromkeys((declared, 0) if isinstance(declared, int) else (0, 1)):
        tokens = count - before
        # the image decides: a model may take others than it was made for, and have stages of fewer tokens
        found = _cut(image, patch or (1, 1), tokens) if image is not None else None
        if found is None and size is not None and size[0] * size[1] == tokens:
            found = size
        side = math.isqrt(max(tokens, 0))
        if found is None and side > 0 and side * side == tokens and (image is None or image[0] == image[1]):
            found = (side, side)
        if found is not None:
            return Grid(*found, before, count)
    return Grid(None, None, 0, count)


def _cut(image: tuple[int, ...], patch: tuple[int, int], tokens: int) -> tuple[int, int] | None:
    """Return rows and columns of an image cut into ``tokens`` patches, each a whole number of times ``patch``."""
    for times in range(1, max(image[0] // patch[0], image[1] // patch[1], 1) + 1):
        height, width = patch[0] * times, patch[1] * times
        for rows, columns in (
            (image[0] // height, image[1] // width),
            (-(-image[0] // height), -(-image[1] // width)),  # padded
        ):
            if rows * columns == tokens and rows > 0:
                return rows, columns
    return None


def _pair(value: Any) -> tuple[int, int] | None:
    if isinstance(value, int) and value > 0:
        return value, value
    if isinstance(value, (tuple, list)) and len(value) == 2 and all(isinstance(v, int) and v > 0 for v in value):
        return value[0], value[1]
    return None
