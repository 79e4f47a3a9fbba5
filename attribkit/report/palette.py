"""The palette of signed maps: blue below zero, red above, an even grey-white at zero.

Its two halves are straight lines in CIELAB, from one light neutral colour to a red and to a blue of equal lightness and
equal chroma. So equal steps of the value are equal steps of colour (CIE 1976 ΔE), both signs grow dark at the same
rate, and in a print without colours, or to an eye without them, the strength can still be read. Red and blue differ for
the common kinds of colour blindness too.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

NEUTRAL = 96.0
"""Lightness at zero."""

DARKEST, CHROMA = 38.0, 54.0
"""Lightness and chroma at both ends: about as far as sRGB reaches for the blue."""

NEGATIVE_HUE, POSITIVE_HUE = 284.0, 38.0
"""In degrees, of CIELAB's a and b."""

_WHITE = np.array([0.95047, 1.0, 1.08883])  # D65
_XYZ_TO_RGB = np.array(
    [[3.2404542, -1.5371385, -0.4985314], [-0.9692660, 1.8760108, 0.0415560], [0.0556434, -0.2040259, 1.0572252]]
)


@lru_cache(maxsize=4)
def _signed(levels: int) -> bytes:
    position = np.linspace(-1.0, 1.0, levels)
    hue = np.radians(np.where(position < 0, NEGATIVE_HUE, POSITIVE_HUE))
    strength = np.abs(position)
    lightness = NEUTRAL + (DARKEST - NEUTRAL) * strength
    lab = np.stack([lightness, CHROMA * strength * np.cos(hue), CHROMA * strength * np.sin(hue)], axis=-1)
    return bytes(np.round(_srgb(lab) * 255).astype(np.uint8).tobytes())


def signed_colours(levels: int) -> NDArray[np.uint8]:
    """Return the palette as RGB [levels, 3], the most negative first.

    Parameters
    ----------
    levels
        How many; of an odd number the middle one is the colour of zero.
    """
    return np.frombuffer(_signed(levels), dtype=np.uint8).reshape(levels, 3)


def hexadecimal(colours: NDArray[np.uint8]) -> list[str]:
    """Return colours [n, 3] as ``#rrggbb``."""
    return [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in colours.tolist()]


def gradient(colours: NDArray[np.uint8], stops: int = 17) -> str:
    """Return a palette [levels, 3] as a CSS gradient from left to right."""
    chosen = colours[np.round(np.linspace(0, len(colours) - 1, stops)).astype(int)]
    return f"linear-gradient(90deg,{','.join(hexadecimal(chosen))})"


def _srgb(lab: NDArray[Any]) -> NDArray[Any]:
    """Return CIELAB colours [..., 3] (D65) as sRGB in [0, 1]; what lies outside is clipped."""
    lightness, a, b = np.moveaxis(lab, -1, 0)
    middle = (lightness + 16) / 116
    f = np.stack([middle + a / 500, middle, middle - b / 200], axis=-1)
    delta = 6 / 29
    xyz = np.where(f > delta, f**3, 3 * delta**2 * (f - 4 / 29)) * _WHITE
    linear = np.clip(xyz @ _XYZ_TO_RGB.T, 0.0, 1.0)
    return np.asarray(np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055))
