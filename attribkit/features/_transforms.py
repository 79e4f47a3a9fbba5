"""Shifting, scaling and turning images: bilinear, exact where pixels meet pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from attribkit.errors import InputError

__all__ = ["Fill", "transform"]

Fill = float | Sequence[float] | str

#: Source coordinates this near to a whole pixel are that pixel: cos and sin of 90° are not quite 0 and 1.
_SNAP = 1e-9


def transform(
    images: Tensor, *, down: float = 0.0, scale: float = 1.0, degrees: float = 0.0, fill: Fill = 0.0
) -> Tensor:
    """Shift, scale and turn images about their centre.

    The output at pixel p takes the input at ``centre + turned back (p - centre - shift) / scale``, interpolated
    bilinearly between its four neighbours in float64. Since bilinear weights sum to one, transforming normalised values
    with the fill normalised is the same as transforming the picture and normalising it then.

    Parameters
    ----------
    images
        Float tensor [N, C, H, W].
    down
        Shift downwards in pixels.
    scale
        Factor about the centre; above 1 enlarges.
    degrees
        Counter-clockwise about the centre.
    fill
        What comes in from outside: a number, one a channel, or ``"edge"`` for the nearest pixel of the border.

    Returns
    -------
    Tensor [N, C, H, W] of the images' dtype.

    Raises
    ------
    InputError
        A scale that is not above 0, a number that is not finite, or a fill that is none of these.
    """
    if not (scale > 0 and all(math.isfinite(v) for v in (down, scale, degrees))):
        raise InputError(f"a transform needs finite numbers and a scale above 0: {down=}, {scale=}, {degrees=}")
    height, width = images.shape[-2:]
    colour = _colour(fill, images)
    y = torch.arange(height, dtype=torch.float64, device=images.device)[:, None] - (height - 1) / 2 - down
    x = torch.arange(width, dtype=torch.float64, device=images.device)[None, :] - (width - 1) / 2
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    # rows run downwards: turning counter-clockwise on screen takes the source clockwise of the output
    rows = _snapped((x * sin + y * cos) / scale + (height - 1) / 2)
    columns = _snapped((x * cos - y * sin) / scale + (width - 1) / 2)
    top, left = rows.floor(), columns.floor()
    found = torch.zeros(images.shape, dtype=torch.float64, device=images.device)
    for row, weight_down in ((top, 1 - (rows - top)), (top + 1, rows - top)):
        for column, weight_across in ((left, 1 - (columns - left)), (left + 1, columns - left)):
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            values = images[..., row.clamp(0, height - 1).long(), column.clamp(0, width - 1).long()].double()
            if colour is not None:
                values = torch.where(inside, values, colour)
            found += values * (weight_down * weight_across)
    return found.to(images.dtype)


def _snapped(coordinates: Tensor) -> Tensor:
    whole = coordinates.round()
    return torch.where((coordinates - whole).abs() < _SNAP * max(coordinates.shape), whole, coordinates)


def _colour(fill: Fill, images: Tensor) -> Tensor | None:
    """Return the fill as [C, 1, 1] in float64, None for the border's own pixels."""
    if isinstance(fill, str):
        if fill != "edge":
            raise InputError(f"fill must be a number, one a channel or 'edge', got {fill!r}")
        return None
    channels = images.shape[-3]
    values = [float(v) for v in fill] if isinstance(fill, Sequence) else [float(fill)] * channels
    if len(values) != channels or not all(math.isfinite(v) for v in values):
        raise InputError(f"fill must be a finite number, {channels} of them or 'edge', got {fill!r}")
    return torch.tensor(values, dtype=torch.float64, device=images.device)[:, None, None]
