"""Maps as pictures: numpy arrays in, PNG or JPEG bytes out.

Scaling happens here and nowhere else: attributions stay signed and unscaled until they are drawn. Colours saturate at
the `PERCENTILE`-th percentile of the non-zero ``|values|``, so that neither a few outliers make a map go blank nor the
zeros of a map that is zero almost everywhere (the projection of one unit). The colour maps are chosen for colour-blind
readers: red and blue for signs, inferno for magnitudes, cividis for scores, the palette of Okabe and Ito for classes.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Array = NDArray[Any]

PERCENTILE = 99.5
"""Where colours saturate: this percentile of the non-zero absolute values."""

SIGNED_COLOURS = "RdBu_r"
MAGNITUDE_COLOURS = "inferno"
SCORE_COLOURS = "cividis"
MAGNITUDE_START = 0.25
"""The darkest quarter of inferno is left out: over a photograph it would read as shadow."""

CLASS_COLOURS = ("#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#F0E442", "#D55E00", "#0072B2")
"""Okabe and Ito's colours, the calmest first: it goes to the class that is explained."""
OTHER_COLOUR = "#8C8C8C"

_LEVELS = 255  # odd, so that the middle level is exactly the colour of zero


@dataclass(frozen=True)
class Picture:
    """A drawn map.

    Attributes
    ----------
    data
        The encoded file.
    width, height
        In pixels.
    mime
        The media type of ``data``.
    low, high
        The values at the two ends of the colour scale (``-limit, limit`` for signed maps).
    notes
        What a reader must know to read it right, such as "every value is zero".
    """

    data: bytes
    width: int
    height: int
    mime: str = "image/png"
    low: float = 0.0
    high: float = 0.0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class LegendEntry:
    """One class of a class map: its colour (``#rrggbb``), its name and at how many positions it won."""

    colour: str
    name: str
    count: int


@dataclass(frozen=True)
class ClassPicture(Picture):
    """A map of classes together with its legend."""

    legend: tuple[LegendEntry, ...] = field(default=())


def robust_limit(values: Array) -> float:
    """Return the value at which colours saturate: a percentile of the finite, non-zero ``|values|`` (0 if none is).

    Parameters
    ----------
    values
        An array of any shape, in the units of the attribution.
    """
    magnitude = np.abs(np.asarray(values, dtype=np.float64))
    magnitude = magnitude[np.isfinite(magnitude) & (magnitude > 0)]
    return float(np.percentile(magnitude, PERCENTILE)) if magnitude.size else 0.0


def signed_map(values: Array) -> Picture:
    """Draw the signed sum over channels: red where it is positive, blue where negative, near white at zero.

    Parameters
    ----------
    values
        One attribution [C, H, W].
    """
    values, notes = finite(values)
    heat = values.sum(axis=0)
    limit = robust_limit(heat)
    notes += _sign_notes(heat)
    image = coloured(scaled(heat, limit) * 0.5 + 0.5, SIGNED_COLOURS)
    return _picture(image if limit else _saying_so(image), -limit, limit, notes)


def magnitude(values: Array) -> Array:
    """Return the magnitude of one attribution [C, H, W] at each pixel [H, W]: ``|values|`` summed over channels."""
    return np.asarray(np.abs(finite(values)[0]).sum(axis=0))


def magnitude_layer(values: Array) -> Picture:
    """Draw the magnitude as a layer to lay over the photograph: transparent at zero, opaque where it is strong.

    Parameters
    ----------
    values
        One attribution [C, H, W].
    """
    heat = magnitude(values)
    limit = robust_limit(heat)
    image = coloured(scaled(heat, limit), MAGNITUDE_COLOURS, start=MAGNITUDE_START)
    data = png(image, transparency=bytes(alpha_ramp()))
    return Picture(data, image.width, image.height, low=0.0, high=limit, notes=zero_notes(heat))


def reconstruction(values: Array) -> Picture:
    """Draw the attribution as a colour image around mid-grey: grey is zero, brighter positive, darker negative.

    Parameters
    ----------
    values
        One attribution [C, H, W]; 3 channels are drawn as red, green and blue, any other number as the grey mean.
    """
    values, notes = finite(values)
    limit = robust_limit(values)
    shown = values if values.shape[0] == 3 else values.mean(axis=0, keepdims=True)
    if shown is not values:
        limit = robust_limit(shown)
    notes += zero_notes(shown)
    pixels = np.round((scaled(shown, limit) * 0.5 + 0.5) * 255).astype(np.uint8)
    image = Image.fromarray(np.moveaxis(pixels, 0, -1) if len(pixels) == 3 else pixels[0])
    return _picture(image if limit else _saying_so(image), -limit, limit, notes)


def score_map(scores: Array, size: tuple[int, int]) -> Picture:
    """Draw a score for every position of a sliding window, dark where it fell, stretched over the image.

    Parameters
    ----------
    scores
        The target's score with the window at each position [rows, cols].
    size
        Height and width of the image that the window slid over, in pixels.
    """
    scores, notes = finite(scores)
    low, high = float(scores.min()), float(scores.max())
    if high > low:
        unit = (scores - low) / (high - low)
    else:
        unit = np.full_like(scores, 0.5)
        notes += (f"the score is {low:.4g} at every position",)
    image = _stretched(coloured(unit, SCORE_COLOURS).convert("RGB"), size)
    return _picture(image, low, high, notes)


def class_map(
    classes: Array, size: tuple[int, int], names: Sequence[str] | None = None, first: int | None = None
) -> ClassPicture:
    """Draw the most probable class for every position of a sliding window, with a legend.

    Parameters
    ----------
    classes
        Class indices [rows, cols].
    size
        Height and width of the image that the window slid over, in pixels.
    names
        The classes' names, by index.
    first
        The class that takes the first, calmest colour and heads the legend: the one that is explained.
        The rest follow by the number of positions; beyond the palette they share one grey, "other".
    """
    classes = np.asarray(classes).astype(np.int64)
    found, counts = np.unique(classes, return_counts=True)
    order = sorted(range(len(found)), key=lambda i: (found[i] != first, -counts[i], found[i]))
    pixels = np.empty((*classes.shape, 3), dtype=np.uint8)
    legend = []
    for rank, i in enumerate(order[: len(CLASS_COLOURS)]):
        pixels[classes == found[i]] = _rgb(CLASS_COLOURS[rank])
        legend.append(LegendEntry(CLASS_COLOURS[rank], class_name(int(found[i]), names), int(counts[i])))
    others = [found[i] for i in order[len(CLASS_COLOURS) :]]
    if others:
        elsewhere = np.isin(classes, others)
        pixels[elsewhere] = _rgb(OTHER_COLOUR)
        name = f"{len(others)} other class{'es' if len(others) > 1 else ''}"
        legend.append(LegendEntry(OTHER_COLOUR, name, int(elsewhere.sum())))
    image = _stretched(Image.fromarray(pixels), size)
    return ClassPicture(png(image), image.width, image.height, legend=tuple(legend))


def class_name(index: int, names: Sequence[str] | None) -> str:
    """Return the name of class ``index``, or ``class 7`` where there are no names."""
    return names[index] if names is not None and 0 <= index < len(names) else f"class {index}"


def photograph(image: Image.Image, longest: int = 640) -> Picture:
    """Encode a photograph as JPEG, no side longer than ``longest`` pixels."""
    image = image.convert("RGB")
    if max(image.size) > longest:
        image = image.copy()
        image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88, optimize=True)
    return Picture(buffer.getvalue(), image.width, image.height, mime="image/jpeg")


def model_view(pixels: Array) -> Image.Image:
    """Return what the model was shown as an RGB image.

    Parameters
    ----------
    pixels
        The denormalised input [C, H, W] in [0, 1]; values outside are clipped. Other than 3 channels become grey.
    """
    pixels = np.clip(finite(pixels)[0], 0.0, 1.0)
    if pixels.shape[0] != 3:
        pixels = np.repeat(pixels.mean(axis=0, keepdims=True), 3, axis=0)
    return Image.fromarray(np.round(np.moveaxis(pixels, 0, -1) * 255).astype(np.uint8))


def colour_bar(kind: str) -> Picture:
    """Draw the colour scale of a kind of map (``signed``, ``magnitude`` or ``score``), low values on the left."""
    names = {"signed": SIGNED_COLOURS, "magnitude": MAGNITUDE_COLOURS, "score": SCORE_COLOURS}
    start = MAGNITUDE_START if kind == "magnitude" else 0.0
    ramp = np.repeat(np.linspace(0.0, 1.0, _LEVELS)[None], 8, axis=0)
    return _picture(coloured(ramp, names[kind], start=start))


def finite(values: Array) -> tuple[Array, tuple[str, ...]]:
    """Return float64 values with NaN and infinities set to zero, and a note saying how many were."""
    values = np.asarray(values, dtype=np.float64)
    bad = ~np.isfinite(values)
    if not bad.any():
        return values, ()
    count = int(bad.sum())
    return np.where(bad, 0.0, values), (f"{count} value{'s are' if count > 1 else ' is'} not finite and drawn as zero",)


def zero_notes(values: Array) -> tuple[str, ...]:
    return () if np.any(values) else ("every value is zero",)


def _sign_notes(values: Array) -> tuple[str, ...]:
    if not np.any(values):
        return zero_notes(values)
    if values.min() >= 0:
        return ("no value is negative",)
    if values.max() <= 0:
        return ("no value is positive",)
    return ()


def scaled(values: Array, limit: float) -> Array:
    """Return ``values / limit`` clipped to [-1, 1]; zeros where the limit is zero."""
    if limit == 0.0:
        return np.zeros_like(values, dtype=np.float64)
    return np.clip(values, -limit, limit) / limit


def levels(unit: Array) -> NDArray[np.uint8]:
    return np.round(np.clip(unit, 0.0, 1.0) * (_LEVELS - 1)).astype(np.uint8)


@lru_cache(maxsize=8)
def _palette(name: str, start: float) -> bytes:
    from matplotlib import colormaps

    colours = colormaps[name](np.linspace(start, 1.0, _LEVELS))[:, :3]
    return bytes(np.round(colours * 255).astype(np.uint8).tobytes())


def alpha_ramp() -> list[int]:
    """Return the opacity of each level: it rises evenly from nothing at zero."""
    return [round(255 * level / (_LEVELS - 1)) for level in range(_LEVELS)]


def coloured(unit: Array, name: str, start: float = 0.0) -> Image.Image:
    """Return a palette image of values in [0, 1]: as small as grey, and exact."""
    image = Image.fromarray(levels(unit))
    image.putpalette(_palette(name, start))
    return image


def _saying_so(image: Image.Image) -> Image.Image:
    """Return a map that is zero everywhere with a line across it that says so: nobody shall take it for a fault."""
    image = image.convert("RGB")
    font = ImageFont.load_default(max(8.0, min(image.size) / 14))
    draw = ImageDraw.Draw(image)
    draw.text((image.width / 2, image.height / 2), "every value is zero", fill="#333333", font=font, anchor="mm")
    return image


def _stretched(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    height, width = size
    return image.resize((width, height), Image.Resampling.NEAREST)


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def png(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True, **options)
    return buffer.getvalue()


def _picture(image: Image.Image, low: float = 0.0, high: float = 0.0, notes: tuple[str, ...] = ()) -> Picture:
    return Picture(png(image), image.width, image.height, low=low, high=high, notes=notes)
