"""From values to levels and colours: where a scale ends, what each level stands for, and palette images of them."""

from __future__ import annotations

import io
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from attribkit.report.palette import signed_colours

Array = NDArray[Any]

PERCENTILE = 99.5
"""Where colours saturate: this percentile of the non-zero absolute values."""

SIGNED_COLOURS = "signed"
"""attribkit's own; the others are matplotlib's."""
MAGNITUDE_COLOURS = "inferno"
SCORE_COLOURS = "cividis"
MAGNITUDE_START = 0.25
"""The darkest quarter of inferno is left out: over a photograph it would read as shadow."""

COLOURS = {
    "signed": (SIGNED_COLOURS, 0.0),
    "magnitude": (MAGNITUDE_COLOURS, MAGNITUDE_START),
    "score": (SCORE_COLOURS, 0.0),
}
"""By the kind of map: the colours' name, and where in them it starts."""

LEVELS = 255  # odd, so that the middle level is exactly the colour of zero

REACH = 100 / 127
"""The share of a map's levels below the limit where colours saturate. The levels beyond all have the last colour, but
keep their values, up to the greatest, apart: a map can be drawn again on a longer scale from its picture alone."""


def robust_limit(values: Array, percentile: float = PERCENTILE) -> float:
    """Return the value at which colours saturate: a percentile of the finite, non-zero ``|values|`` (0 if none is).

    Parameters
    ----------
    values
        An array of any shape, in the units of the attribution.
    percentile
        From 0 to 100.
    """
    magnitude = np.abs(np.asarray(values, dtype=np.float64))
    magnitude = magnitude[np.isfinite(magnitude) & (magnitude > 0)]
    return float(np.percentile(magnitude, percentile)) if magnitude.size else 0.0


def finite(values: Array) -> tuple[Array, tuple[str, ...]]:
    """Return float64 values with NaN and infinities set to zero, and a note saying how many were."""
    values = np.asarray(values, dtype=np.float64)
    bad = ~np.isfinite(values)
    if not bad.any():
        return values, ()
    count = int(bad.sum())
    return np.where(bad, 0.0, values), (f"{count} value{'s are' if count > 1 else ' is'} not finite and drawn as zero",)


def scaled(values: Array, limit: float) -> Array:
    """Return ``values / limit`` clipped to [-1, 1]; zeros where the limit is zero."""
    if limit == 0.0:
        return np.zeros_like(values, dtype=np.float64)
    return np.clip(values, -limit, limit) / limit


def levels(unit: Array) -> NDArray[np.uint8]:
    return np.round(np.clip(unit, 0.0, 1.0) * (LEVELS - 1)).astype(np.uint8)


def palette(kind: str) -> NDArray[np.uint8]:
    """Return the colours [n, 3] of a kind of map (``signed``, ``magnitude`` or ``score``), the lowest value's first."""
    return np.frombuffer(_palette(*COLOURS[kind]), dtype=np.uint8).reshape(-1, 3)


@lru_cache(maxsize=8)
def _palette(name: str, start: float) -> bytes:
    if name == SIGNED_COLOURS:
        return bytes(signed_colours(LEVELS).tobytes())
    from matplotlib import colormaps

    colours = colormaps[name](np.linspace(start, 1.0, LEVELS))[:, :3]
    return bytes(np.round(colours * 255).astype(np.uint8).tobytes())


def alpha_ramp() -> list[int]:
    """Return the opacity of each level: it rises evenly from nothing at zero."""
    return [round(255 * level / (LEVELS - 1)) for level in range(LEVELS)]


def coloured(unit: Array, name: str, start: float = 0.0) -> Image.Image:
    """Return a palette image of values in [0, 1]: as small as grey, and exact."""
    image = Image.fromarray(levels(unit))
    image.putpalette(_palette(name, start))
    return image


def ranged(heat: Array, limit: float, kind: str) -> Image.Image:
    """Return a palette image of a map, ``signed`` or ``magnitude``, whose levels stand for values beyond the limit too.

    Levels count away from zero (which is the middle one of a signed map): the first `REACH` of them are even steps from
    0 to ``limit``, the rest even steps of the logarithm from there to the greatest absolute value, drawn in the last
    colour.

    Parameters
    ----------
    heat
        The map [H, W].
    limit
        Where colours saturate.
    kind
        Of which kind of map, as for `palette`.
    """
    strength = REACH * np.abs(scaled(heat, limit))
    beyond = np.abs(heat) > limit
    if limit and beyond.any():
        excess = np.log(np.abs(heat[beyond])) - np.log(limit)
        strength[beyond] += (1 - REACH) * excess / excess.max() if excess.max() > 0 else 0.0
    shown = reached(kind == "signed")
    if kind == "signed":
        strength, shown = np.sign(heat) * strength * 0.5 + 0.5, shown * 0.5 + 0.5
    image = Image.fromarray(levels(strength))
    image.putpalette(palette(kind)[levels(shown)].tobytes())
    return image


def reached(signed: bool) -> Array:
    """Return for each level of `ranged` the share of the limit, from -1 or 0 to 1, whose colour it has."""
    return np.clip(np.linspace(-1.0 if signed else 0.0, 1.0, LEVELS) / REACH, -1.0, 1.0)


def around_grey(values: Array, limit: float | None = None, percentile: float = PERCENTILE) -> Image.Image:
    """Return a map [C, H, W] as an image around mid-grey, which is zero: brighter is positive, darker negative.

    Parameters
    ----------
    values
        3 channels are drawn as red, green and blue, any other number as their grey mean.
    limit
        Where colours saturate; None: `robust_limit` of what is drawn.
    percentile
        The percentile that is, where no limit is given.
    """
    shown = values if len(values) == 3 else values.mean(axis=0, keepdims=True)
    unit = scaled(shown, robust_limit(shown, percentile) if limit is None else limit) * 0.5 + 0.5
    pixels = np.round(np.moveaxis(unit, 0, -1) * 255).astype(np.uint8)
    return Image.fromarray(pixels if len(shown) == 3 else pixels[..., 0])


def shrunk(values: Array, longest: int | None) -> Array:
    """Return a map [H, W] averaged so that no side is longer than ``longest`` (None: as it is)."""
    if longest is None or max(values.shape) <= longest:
        return values
    factor = longest / max(values.shape)
    size = [max(1, round(side * factor)) for side in values.shape]
    unit = float(np.abs(values).max()) or 1.0  # pillow counts in float32
    small = Image.fromarray((values / unit).astype(np.float32)).resize((size[1], size[0]), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float64) * unit


def png(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True, **options)
    return buffer.getvalue()
