"""Measures of a map alone: how it is read, how complex it is, how much noise changes it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[np.float64]


def heatmap(values: Tensor, reading: str) -> Tensor:
    """Return a number a pixel [N, H, W] of maps [N, C, H, W]: their sum over the channels, or that of their sizes."""
    return (values.abs() if reading == "absolute" else values).sum(1)


def complexity(values: Tensor) -> Array:
    """Return the entropy, in nats, of the pixels' shares in each map [N, C, H, W] (Bhatt et al. 2020).

    A pixel's share is its absolute values' part in the whole map's. NaN where a map is zero everywhere.
    """
    sizes = _sizes(values)
    total = sizes.sum(1, keepdims=True)
    shares = np.divide(sizes, total, out=np.full_like(sizes, np.nan), where=total > 0)
    logs = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
    found: Array = -(shares * logs).sum(1)
    return found


def sparseness(values: Tensor) -> Array:
    """Return the Gini index of the pixels' absolute values of each map [N, C, H, W] (Chalasani et al. 2020).

    NaN where a map is zero everywhere.
    """
    sizes = np.sort(_sizes(values), axis=1)
    count = sizes.shape[1]
    weights = 2 * np.arange(1, count + 1) - count - 1
    total = sizes.sum(1)
    found: Array = np.divide((sizes * weights).sum(1), count * total, out=np.full(len(sizes), np.nan), where=total > 0)
    return found


def max_sensitivity(
    explain: Callable[[Tensor], Tensor], inputs: Tensor, values: Tensor, *, repeats: int, radius: float, seed: int
) -> Array:
    """Return how much noise changes each map at most, relative to its norm (Yeh et al. 2019).

    Parameters
    ----------
    explain
        Returns the maps of inputs [N, C, H, W]; the classes are those of the inputs without noise.
    inputs, values
        Images and their maps [N, C, H, W].
    repeats
        How many noisy copies of each image.
    radius
        The noise is uniform in ± this share of the image's range. Every image gets the same pattern of noise.
    seed
        Of the noise.
    """
    dims = (1, 2, 3)
    size = radius * (inputs.amax(dims, keepdim=True) - inputs.amin(dims, keepdim=True))
    norm = values.double().flatten(1).norm(dim=1)
    largest = torch.zeros_like(norm)
    for noise in unit_noise(inputs, repeats, seed):
        changed = explain(inputs + size * (2 * noise - 1))
        largest = torch.maximum(largest, (changed - values).double().flatten(1).norm(dim=1))
    found = torch.where(norm > 0, largest / norm, torch.nan)
    return np.asarray(found.cpu().numpy(), dtype=np.float64)


def unit_noise(inputs: Tensor, count: int, seed: int) -> Tensor:
    """Return patterns of noise [count, C, H, W], uniform in [0, 1): the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(count, *inputs.shape[1:], generator=generator, dtype=torch.float64)
    return noise.to(device=inputs.device, dtype=inputs.dtype)


def _sizes(values: Tensor) -> Array:
    return np.asarray(values.abs().double().sum(1).flatten(1).cpu().numpy(), dtype=np.float64)
