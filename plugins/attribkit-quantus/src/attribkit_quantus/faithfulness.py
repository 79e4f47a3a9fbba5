"""Faithfulness: what becomes of the class's score while an image's pixels are taken away in the order of a map."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.functional import gaussian_blur

from attribkit_quantus.measures import unit_noise

Array = npt.NDArray[np.float64]
Score = Callable[[Tensor, Tensor], Tensor]
"""Takes inputs [B, C, H, W] and their classes [B], returns a number each [B]."""

PATCHES_A_SIDE = 28
BLUR = 1 / 8


def places(heat: Tensor, seed: int = 0) -> Tensor:
    """Return each pixel's place [N, H, W] in the order of decreasing values, from 0.

    Equal values come in a random order, the same for every map of that size: a map that is zero in half of the image
    says nothing about the order there, and reading it from the top left would.
    """
    flat = heat.flatten(1)
    shuffled = torch.randperm(flat.shape[1], generator=torch.Generator().manual_seed(seed)).to(heat.device)
    order = shuffled[flat[:, shuffled].argsort(dim=1, descending=True, stable=True)]
    found = torch.empty_like(order)
    found.scatter_(1, order, torch.arange(flat.shape[1], device=heat.device).expand_as(order))
    return found.view(heat.shape)


def replaced(score: Score, inputs: Tensor, classes: Tensor, other: Tensor, place: Tensor, counts: list[int]) -> Tensor:
    """Return the score [N, len(counts)] after the first so many pixels were replaced by those of other images.

    Parameters
    ----------
    score
        What is followed.
    inputs, other
        Images [N, C, H, W], and what replaces their pixels.
    classes
        The class of each [N].
    place
        Each pixel's place in the order [N, H, W].
    counts
        How many pixels are replaced.
    """
    curve = [score(torch.where((place < count)[:, None], other, inputs), classes) for count in counts]
    return torch.stack(curve, 1)


def deletion(probability: Score, inputs: Tensor, classes: Tensor, place: Tensor, steps: int) -> Tensor:
    """Return the curve [N, steps + 1] of the probability while pixels become 0, the strongest first."""
    counts = _counts(place[0].numel(), steps)
    return replaced(probability, inputs, classes, torch.zeros_like(inputs), place, counts)


def insertion(probability: Score, inputs: Tensor, classes: Tensor, place: Tensor, steps: int) -> Tensor:
    """Return the curve [N, steps + 1] of the probability while pixels become sharp, the strongest first."""
    counts = _counts(place[0].numel(), steps)
    return replaced(probability, blurred(inputs), classes, inputs, place, counts)


def pixel_flipping(
    logit: Score, inputs: Tensor, classes: Tensor, heat: Tensor, *, flips: int, steps: int, seed: int
) -> Tensor:
    """Return the curve [N, steps + 1] of the score while patches become noise, the strongest first.

    A patch counts as its pixels' sum. The noise is uniform in each image's range and has the same pattern in all.
    """
    side = patch_side(inputs)
    place = places(patch_sums(heat, side), seed)
    flips = min(flips, place[0].numel())
    counts = _counts(flips, min(steps, flips))
    for dim, length in ((1, heat.shape[1]), (2, heat.shape[2])):
        place = place.repeat_interleave(side, dim).narrow(dim, 0, length)
    dims = (1, 2, 3)
    low, high = inputs.amin(dims, keepdim=True), inputs.amax(dims, keepdim=True)
    noise = low + (high - low) * unit_noise(inputs, 1, seed)
    return replaced(logit, inputs, classes, noise, place, counts)


def patch_side(inputs: Tensor) -> int:
    """Return the side of pixel flipping's patches: a 28th of the image's shorter side, at least one pixel."""
    return max(1, min(inputs.shape[2:]) // PATCHES_A_SIDE)


def patch_sums(heat: Tensor, side: int) -> Tensor:
    """Return the sum of each patch of maps [N, H, W]; patches at the border may be cut off."""
    high, wide = heat.shape[1:]
    padded = F.pad(heat[:, None], (0, -wide % side, 0, -high % side))
    return F.avg_pool2d(padded, side, divisor_override=1)[:, 0]


def blurred(inputs: Tensor) -> Tensor:
    """Return the images with a Gaussian blur whose deviation is an eighth of the shorter side."""
    deviation = BLUR * min(inputs.shape[2:])
    radius = min(int(2 * deviation) + 1, min(inputs.shape[2:]) - 1)  # torchvision reflects at the border
    size = 2 * radius + 1
    for kernel in ([size, 1], [1, size]):  # one direction after the other: a fraction of the work
        inputs = gaussian_blur(inputs, kernel, [deviation] * 2)
    return inputs


def area(curve: Tensor) -> Array:
    """Return the area under each curve [N, K] by the trapezoid rule, the whole way counting as 1."""
    found = torch.trapezoid(curve.double(), dim=1) / (curve.shape[1] - 1)
    return np.asarray(found.cpu().numpy(), dtype=np.float64)


def mean_drop(curve: Tensor) -> Array:
    """Return by how much each curve [N, K] lies below its start on average (Samek et al. 2017)."""
    found = (curve[:, :1] - curve).double().mean(1)
    return np.asarray(found.cpu().numpy(), dtype=np.float64)


def _counts(whole: int, steps: int) -> list[int]:
    return [round(step * whole / steps) for step in range(steps + 1)]
