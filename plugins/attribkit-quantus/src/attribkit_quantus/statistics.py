"""Means with confidence intervals, and ranks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

_ROWS = 100  # resamples drawn at once: memory stays small for many images


@dataclass(frozen=True)
class Interval:
    """A mean over images with its confidence interval.

    Attributes
    ----------
    mean, low, high
        NaN where there is nothing to take them from; the ends also where there is only one image (or group).
    n
        How many images it is the mean of: those whose value is a number.
    """

    mean: float
    low: float
    high: float
    n: int


def bootstrap(
    values: npt.ArrayLike,
    groups: npt.ArrayLike | None = None,
    *,
    seed: int = 0,
    resamples: int = 2000,
    level: float = 0.95,
) -> Interval:
    """Return the mean and its percentile bootstrap interval (Efron & Tibshirani 1993).

    Parameters
    ----------
    values
        One number an image; NaN where it has none, which is left out.
    groups
        What images were measured together (a grid, a batch) and are therefore drawn together; None: each on its own.
    seed, resamples, level
        Of the draws, how many of them, and the share of them between the two ends.
    """
    numbers = np.asarray(values, dtype=np.float64).ravel()
    known = ~np.isnan(numbers)
    kept = numbers[known]
    if len(kept) == 0:
        return Interval(np.nan, np.nan, np.nan, 0)
    labels = np.arange(len(numbers)) if groups is None else np.asarray(groups).ravel()
    _, member = np.unique(labels[known], return_inverse=True)
    sums, counts = np.bincount(member, weights=kept), np.bincount(member)
    mean = float(kept.mean())
    if len(sums) == 1:
        return Interval(mean, np.nan, np.nan, len(kept))
    rng = np.random.default_rng(seed)
    means = []
    for start in range(0, resamples, _ROWS):
        drawn = rng.integers(len(sums), size=(min(_ROWS, resamples - start), len(sums)))
        means.append(sums[drawn].sum(1) / counts[drawn].sum(1))
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, float(low), float(high), len(kept))


def ranks(values: npt.NDArray[Any]) -> Array:
    """Return the rank of each value within its row of [N, P], from 1; equal values share their mean rank."""
    found = np.empty(values.shape, dtype=np.float64)
    for row, numbers in zip(found, values, strict=True):
        _, member, counts = np.unique(numbers, return_inverse=True, return_counts=True)
        last = np.cumsum(counts)
        row[:] = (last - (counts - 1) / 2)[member]
    return found


def rank_correlation(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> Array:
    """Return Spearman's rank correlation of each row of [N, P] with the same row of another.

    NaN where a row is constant, or holds a value that is no number.
    """
    a, b = ranks(first), ranks(second)
    a -= a.mean(1, keepdims=True)
    b -= b.mean(1, keepdims=True)
    scale = np.sqrt((a * a).sum(1) * (b * b).sum(1))
    found: Array = np.divide((a * b).sum(1), scale, out=np.full(len(a), np.nan), where=scale > 0)
    found[~np.isfinite(first).all(1) | ~np.isfinite(second).all(1)] = np.nan
    return found
