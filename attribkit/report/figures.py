"""Maps as pictures: numpy arrays in, PNG or JPEG bytes out.

Scaling happens here and nowhere else: attributions stay signed and unscaled until they are drawn. Colours saturate at
the `PERCENTILE`-th percentile of the non-zero ``|values|``, so that neither a few outliers make a map go blank nor the
zeros of a map that is zero almost everywhere (the projection of one unit). The colour maps are chosen for colour-blind
readers: red and blue for signs (`attribkit.report.palette`), inferno for magnitudes, cividis for scores, the palette of
Okabe and Ito for classes.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from attribkit.report.levels import (
    COLOURS,
    LEVELS,
    MAGNITUDE_COLOURS,
    MAGNITUDE_START,
    PERCENTILE,
    REACH,
    SCORE_COLOURS,
    SIGNED_COLOURS,
    Array,
    alpha_ramp,
    around_grey,
    coloured,
    finite,
    levels,
    png,
    ranged,
    reached,
    robust_limit,
    scaled,
    shrunk,
)

__all__ = [
    "CLASS_COLOURS",
    "LEVELS",
    "MAGNITUDE_COLOURS",
    "MAGNITUDE_START",
    "OTHER_COLOUR",
    "PERCENTILE",
    "REACH",
    "SCORE_COLOURS",
    "SIGNED_COLOURS",
    "Array",
    "ClassPicture",
    "LegendEntry",
    "Picture",
    "alpha_ramp",
    "around_grey",
    "class_map",
    "class_name",
    "colour_bar",
    "coloured",
    "finite",
    "levels",
    "magnitude",
    "magnitude_layer",
    "model_view",
    "photograph",
    "png",
    "reconstruction",
    "robust_limit",
    "scaled",
    "score_map",
    "signed_map",
    "zero_notes",
]

CLASS_COLOURS = ("#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#F0E442", "#D55E00", "#0072B2")
"""Okabe and Ito's colours, the calmest first: it goes to the class that is explained."""
OTHER_COLOUR = "#8C8C8C"

#: What a picture needs for words to be read on it, in pixels, and how long a side may become for them.
WORDS_WIDTH, WORDS_HEIGHT, WORDS_LONGEST = 160, 16, 1600


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
    peak
        Of signed maps and magnitudes: the greatest absolute value, for which the last level stands; see `ranged`.
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
    peak: float = 0.0


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


def signed_map(values: Array, longest: int | None = None) -> Picture:
    """Draw the signed sum over channels: red where it is positive, blue where negative, near white at zero.

    Parameters
    ----------
    values
        One attribution [C, H, W].
    longest
        No side is longer, in pixels: values are averaged, after the sum. None: every pixel is drawn. A map that is
        zero everywhere may be larger, for the words on it.
    """
    values, notes = finite(values)
    heat = shrunk(values.sum(axis=0), longest)
    limit, peak = robust_limit(heat), float(np.abs(heat).max())
    notes += _sign_notes(heat)
    image = ranged(heat, limit, "signed")
    return _picture(image if limit else _saying_so(image), -limit, limit, notes, peak)


def magnitude(values: Array) -> Array:
    """Return the magnitude of one attribution [C, H, W] at each pixel [H, W]: ``|values|`` summed over channels."""
    return np.asarray(np.abs(finite(values)[0]).sum(axis=0))


def magnitude_layer(values: Array, longest: int | None = None) -> Picture:
    """Draw the magnitude as a layer to lay over the photograph: transparent at zero, opaque where it is strong.

    Parameters
    ----------
    values
        One attribution [C, H, W].
    longest
        As for `signed_map`; it is the magnitude that is averaged, in which no signs cancel.
    """
    heat = shrunk(magnitude(values), longest)
    limit = robust_limit(heat)
    image = ranged(heat, limit, "magnitude")
    alpha = np.asarray(alpha_ramp(), dtype=np.uint8)[levels(reached(signed=False))]
    data = png(image, transparency=alpha.tobytes())
    return Picture(data, image.width, image.height, high=limit, notes=zero_notes(heat), peak=float(heat.max()))


def reconstruction(values: Array, longest: int | None = None) -> Picture:
    """Draw the attribution as a colour image around mid-grey: grey is zero, brighter positive, darker negative.

    Parameters
    ----------
    values
        One attribution [C, H, W]; 3 channels are drawn as red, green and blue, any other number as the grey mean.
    longest
        As for `signed_map`; each channel is averaged.
    """
    values, notes = finite(values)
    shown = values if values.shape[0] == 3 else values.mean(axis=0, keepdims=True)
    shown = np.stack([shrunk(channel, longest) for channel in shown])
    limit = robust_limit(shown)
    notes += zero_notes(shown)
    image = around_grey(shown, limit)
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
    image = _stretched(coloured(unit, *COLOURS["score"]).convert("RGB"), size)
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
    ramp = np.repeat(np.linspace(0.0, 1.0, LEVELS)[None], 8, axis=0)
    return _picture(coloured(ramp, *COLOURS[kind]))


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


def _saying_so(image: Image.Image) -> Image.Image:
    """Return a map that is zero everywhere with a line across it that says so: nobody shall take it for a fault.

    A map that the line does not fit on is enlarged by a whole factor.
    """
    image = image.convert("RGB")
    width, height = image.size
    factor = max(1, min(max(-(-WORDS_WIDTH // width), -(-WORDS_HEIGHT // height)), WORDS_LONGEST // max(image.size)))
    image = image.resize((width * factor, height * factor), Image.Resampling.NEAREST)
    draw, words = ImageDraw.Draw(image), "every value is zero"
    size = min(max(12.0, min(image.size) / 14), image.height * 0.8)
    size *= min(1.0, 0.95 * image.width / draw.textlength(words, ImageFont.load_default(size)))
    font = ImageFont.load_default(size)
    draw.text((image.width / 2, image.height / 2), words, fill="#111111", font=font, anchor="mm")
    return image


def _stretched(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    height, width = size
    return image.resize((width, height), Image.Resampling.NEAREST)


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def _picture(
    image: Image.Image, low: float = 0.0, high: float = 0.0, notes: tuple[str, ...] = (), peak: float = 0.0
) -> Picture:
    return Picture(png(image), image.width, image.height, low=low, high=high, notes=notes, peak=peak)
