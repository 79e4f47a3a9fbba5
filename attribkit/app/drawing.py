"""Maps over a picture, drawn as somebody asked: the same values, other colours. Needs no torch."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from attribkit.app.view import Display
from attribkit.report import figures
from attribkit.report.levels import png
from attribkit.report.overlay import captioned

Array = NDArray[Any]

FADE = 12.0
"""How much sooner than strong places the weak ones let the picture through."""

LEAST = 480
"""The least width of a figure in pixels."""


def strength(values: Array, sign: str) -> Array:
    """Return what is drawn of one attribution [C, H, W] at each pixel: [H, W].

    ``signed`` is the sum over channels, ``positive`` and ``negative`` the part of it with that sign (as a magnitude),
    ``absolute`` the sum over channels of ``|values|``. A map that is the same in every channel (the occlusion's) counts
    once, so that the scale tells the method's own values.
    """
    if len(values) > 1 and np.array_equal(values, np.broadcast_to(values[:1], values.shape), equal_nan=True):
        values = values[:1]
    if sign == "absolute":
        return figures.magnitude(values)
    heat = figures.finite(values)[0].sum(axis=0)
    if sign == "positive":
        return np.asarray(heat.clip(min=0))
    return np.asarray((-heat).clip(min=0)) if sign == "negative" else np.asarray(heat)


def draw(view: Image.Image, values: Array, display: Display | None = None) -> Image.Image:
    """Draw an attribution over the picture.

    Parameters
    ----------
    view
        What the model was shown, of the attribution's height and width.
    values
        One attribution [C, H, W].
    display
        How; None: the defaults.
    """
    display = display or Display()
    heat = strength(values, display.sign)
    unit = figures.scaled(heat, figures.robust_limit(heat, display.percentile))
    if display.sign == "signed":
        colours = figures.coloured(unit * 0.5 + 0.5, figures.SIGNED_COLOURS)
    else:
        colours = figures.coloured(unit, figures.MAGNITUDE_COLOURS)
    # an opacity of 1 hides the picture and 0 the map; between, weak places are fainter than strong ones
    exponent = 1.0 + FADE * (1.0 - np.abs(unit))
    alpha = np.where(display.opacity > 0, np.power(max(display.opacity, 1e-9), exponent), 0.0)[..., None]
    # the picture is drawn grey, so that every colour is the map's
    grey = np.asarray(view.convert("L").convert("RGB"), dtype=np.float64)
    mixed = grey * (1 - alpha) + np.asarray(colours.convert("RGB"), dtype=np.float64) * alpha
    return Image.fromarray(np.round(mixed).astype(np.uint8))


def figure(
    view: Image.Image, values: Array, display: Display | None = None, title: str = "", details: str = ""
) -> bytes:
    """Draw an attribution over the picture, with a caption and the scale of its colours: a PNG that stands on its own.

    Parameters
    ----------
    view, values, display
        As for `draw`.
    title, details
        The caption; long lines are wrapped.
    """
    display = display or Display()
    drawn = draw(view, values, display)
    factor = max(1, -(-LEAST // drawn.width))
    drawn = drawn.resize((drawn.width * factor, drawn.height * factor), Image.Resampling.NEAREST)
    limit = figures.robust_limit(strength(values, display.sign), display.percentile)
    low, high = ends(display.sign, limit)
    return png(captioned(drawn, title, details, scale(display.sign), low, f"{high}   {display.sign}"))


def scale(sign: str) -> Image.Image:
    """Return the scale of a kind of map as a strip, low values on the left."""
    signed = sign == "signed"
    ramp = np.repeat(np.linspace(0.0, 1.0, 255)[None], 8, axis=0)
    return figures.coloured(ramp, figures.SIGNED_COLOURS if signed else figures.MAGNITUDE_COLOURS).convert("RGB")


def ends(sign: str, limit: float) -> tuple[str, str]:
    """Return what stands at both ends of the scale."""
    high = f"{limit:.3g}"
    if sign == "signed":
        return f"\N{MINUS SIGN}{high}", f"+{high}"
    return "0", f"\N{MINUS SIGN}{high}" if sign == "negative" else high


def thumbnail(values: Array, signed: bool) -> Image.Image:
    """Draw one feature map [h, w], a pixel a unit: by sign, or dark at zero."""
    values = figures.finite(values)[0]
    top = float(np.abs(values).max()) or 1.0
    if signed:
        return figures.coloured(values / top * 0.5 + 0.5, figures.SIGNED_COLOURS)
    return figures.coloured(values / top, figures.MAGNITUDE_COLOURS)


def reconstruction(values: Array, percentile: float) -> Image.Image:
    """Draw a projection [C, H, W] as an image around mid-grey, which is zero."""
    return figures.around_grey(figures.finite(values)[0], percentile=percentile).convert("RGB")
