"""What can be said of a convolution's filters by looking at their weights alone."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["BANDS", "GRID", "aliasing", "band_areas", "band_shares", "frequencies", "power", "rms"]

Array = npt.NDArray[np.float64]

#: Side of the grid of frequencies on which a filter's response is evaluated (larger for larger filters).
GRID = 64
#: The bands by radial frequency in cycles a pixel: from, to (half-open); the last takes all that is above.
BANDS = {"low": (0.0, 0.125), "mid": (0.125, 0.25), "high": (0.25, np.inf)}


def rms(weight: Array) -> Array:
    """Return the root mean square of each filter's weights [K] for weights [K, C, h, w]."""
    return np.asarray(np.sqrt((weight.astype(np.float64) ** 2).reshape(len(weight), -1).mean(1)))


def power(weight: Array) -> Array:
    """Return each filter's power spectrum [K, G, G]: Σ_c |Ŵ_c(f)|², Ŵ the Fourier transform, zero-padded to the grid.

    By Cauchy–Schwarz it is the largest squared amplitude with which the filter can answer a grating of that frequency
    whose colour is a unit vector: the best colour, in each channel the best phase.
    """
    side = max(GRID, *weight.shape[-2:])
    spectrum = np.fft.fft2(weight.astype(np.float64), s=(side, side))
    return np.asarray((np.abs(spectrum) ** 2).sum(1))


def frequencies(side: int) -> tuple[Array, Array]:
    """Return vertical and horizontal frequency on the grid [G, G] in cycles a pixel, −1/2 … 1/2."""
    line = np.fft.fftfreq(side)
    vertical, horizontal = np.meshgrid(line, line, indexing="ij")
    return vertical, horizontal


def band_shares(spectrum: Array) -> dict[str, Array]:
    """Return for each band the share of each filter's spectral energy [K]; nan for a filter of zeros."""
    total = spectrum.sum((1, 2))
    with np.errstate(invalid="ignore"):
        return {name: spectrum[:, inside].sum(1) / total for name, inside in _inside(spectrum.shape[-1]).items()}


def band_areas(side: int) -> dict[str, float]:
    """Return for each band the share of all frequencies that lie in it: what white noise would have."""
    return {name: float(inside.mean()) for name, inside in _inside(side).items()}


def aliasing(spectrum: Array, stride: tuple[int, int]) -> tuple[Array, Array]:
    """Return each filter's aliasing ratio and aliased share, [K] and [K].

    A map taken at every s-th pixel tells frequencies apart up to 1/(2s) cycles a pixel (Nyquist); what lies above, in
    either direction, comes out as a lower one. The ratio is the root mean square response to gratings above the limit
    over that to gratings up to it; the share is the spectral energy above the limit over all. Both are 0 at stride 1,
    where nothing lies above.
    """
    vertical, horizontal = frequencies(spectrum.shape[-1])
    above = (np.abs(vertical) > 1 / (2 * stride[0]) + 1e-12) | (np.abs(horizontal) > 1 / (2 * stride[1]) + 1e-12)
    if not above.any():
        return np.zeros(len(spectrum)), np.zeros(len(spectrum))
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = np.sqrt(spectrum[:, above].mean(1) / spectrum[:, ~above].mean(1))
        share = spectrum[:, above].sum(1) / spectrum.sum((1, 2))
    return ratio, share


def _inside(side: int) -> dict[str, npt.NDArray[np.bool_]]:
    radius = np.hypot(*frequencies(side))
    return {name: (radius >= low) & (radius < high) for name, (low, high) in BANDS.items()}
