"""What Captum leaves to its caller: windows, baselines, feature masks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

#: The least side of a patch of a feature mask, in pixels.
LEAST_PATCH = 4

#: How many images go through the model at once where Captum would take every step of every sample.
ROWS = 16


def window(inputs: Tensor) -> tuple[int, int, int]:
    """Return a window over all channels with a seventh of the image's shorter side, rounded up."""
    side = -(-min(inputs.shape[-2:]) // 7)
    return (inputs.shape[1], side, side)


def half(window: Any, inputs: Tensor) -> Any:
    """Return strides of half a window; a window that is no triple of numbers is Captum's to refuse."""
    try:
        channels, *sides = (int(side) for side in window)
    except (TypeError, ValueError):
        return None
    return (max(1, channels), *(max(1, side // 2) for side in sides))


def grid(inputs: Tensor, patches: int) -> Tensor:
    """Return a feature mask [1, 1, H, W]: at most ``patches`` patches along each side, the same for every channel."""
    places = []
    for length in inputs.shape[-2:]:
        count = min(length, patches, max(2, length // LEAST_PATCH))
        places.append(torch.arange(length, device=inputs.device) * count // length)
    rows, columns = places
    mask: Tensor = rows[:, None] * (columns[-1] + 1) + columns
    return mask[None, None]


def black(inputs: Tensor, count: int) -> Tensor:
    """Return ``count`` baselines of zeros: the mean colour of normalised images."""
    return inputs.new_zeros(count, *inputs.shape[1:])
