"""The overlay: magnitude over the photograph with a caption, a picture that stands on its own."""

from __future__ import annotations

import io
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from attribkit.report.figures import (
    MAGNITUDE_COLOURS,
    MAGNITUDE_START,
    Array,
    alpha_ramp,
    colour_bar,
    coloured,
    levels,
    magnitude,
    png,
    robust_limit,
    scaled,
    zero_notes,
)

WIDTH = 448
"""The least width of an overlay in pixels: room for the caption."""
LONGEST = 1344
"""No side is enlarged beyond this."""


def overlay(view: Image.Image, values: Array, title: str, details: str, opacity: float = 0.9) -> bytes:
    """Draw the magnitude over the photograph with a caption: a PNG that stands on its own.

    Parameters
    ----------
    view
        What the model was shown, of the attribution's height and width.
    values
        One attribution [C, H, W].
    title, details
        The two lines of the caption; long ones are wrapped.
    opacity
        Of the strongest values, from 0 to 1.

    Returns
    -------
    bytes
        A PNG at least `WIDTH` pixels wide.
    """
    heat = magnitude(values)
    strength = scaled(heat, robust_limit(heat))
    layer = coloured(strength, MAGNITUDE_COLOURS, MAGNITUDE_START).convert("RGB")
    ramp = np.asarray(alpha_ramp(), dtype=np.float64) * opacity
    alpha = Image.fromarray(ramp[levels(strength)].astype(np.uint8))
    # Small inputs are enlarged by a whole factor, so that every value stays a square.
    factor = max(1, min(-(-WIDTH // view.width), LONGEST // max(view.size)))
    size = (view.width * factor, view.height * factor)
    # The photograph is drawn grey and a little darker, so that every colour is the map's.
    picture = view.convert("L").point([round(0.75 * level) for level in range(256)]).convert("RGB")
    picture = picture.resize(size, Image.Resampling.LANCZOS)
    picture.paste(layer.resize(size, Image.Resampling.NEAREST), mask=alpha.resize(size, Image.Resampling.NEAREST))
    notes = zero_notes(heat)
    bar = Image.open(io.BytesIO(colour_bar("magnitude").data)).convert("RGB")
    return png(captioned(picture, title, "; ".join((details, *notes)), bar, "0", "strong"))


@lru_cache(maxsize=4)
def font_of(size: int, bold: bool = False) -> Any:
    """Return DejaVu Sans, which comes with matplotlib and knows most alphabets; else pillow's own font."""
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    try:
        return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/{name}", size)
    except OSError:
        return ImageFont.load_default(size)


def captioned(picture: Image.Image, title: str, details: str, bar: Image.Image, low: str, high: str) -> Image.Image:
    """Return the picture with a white strip below it: title, details and the colour scale.

    Parameters
    ----------
    picture
        RGB, of any size; the strip is at least `WIDTH` pixels wide.
    title, details
        Long ones are wrapped.
    bar
        The colours of the scale, RGB, low values on the left; it is stretched.
    low, high
        What stands at its ends.
    """
    margin, width = 14, max(WIDTH, picture.width)
    lines = [(line, font_of(15, True), "#1a1a1a") for line in wrapped(title, font_of(15, True), width - 2 * margin)]
    lines += [(line, font_of(12), "#4a4a4a") for line in wrapped(details, font_of(12), width - 2 * margin)]
    heights = [22 if font is font_of(15, True) else 18 for _, font, _ in lines]
    bar_height, top = 8, picture.height + 12
    canvas = Image.new("RGB", (width, top + sum(heights) + 38), "white")
    canvas.paste(picture, ((width - picture.width) // 2, 0))
    draw = ImageDraw.Draw(canvas)
    for (line, font, colour), height in zip(lines, heights, strict=True):
        draw.text((margin, top), line, fill=colour, font=font)
        top += height
    top += 8
    small = font_of(11)
    left = margin + round(draw.textlength(low, font=small)) + 6
    right = left + min(180, width // 3)
    canvas.paste(bar.resize((right - left, bar_height)), (left, top + 3))
    draw.text((margin, top), low, fill="#4a4a4a", font=small)
    draw.text((right + 6, top), high, fill="#4a4a4a", font=small)
    return canvas


def wrapped(text: str, font: Any, width: int) -> list[str]:
    """Break text into lines no wider than ``width`` pixels; a word that is too long is cut."""
    lines: list[str] = []
    line = ""
    for word in text.split(" "):  # a no-break space breaks no line
        while font.getlength(word) > width:
            cut = max(1, next(n for n in range(1, len(word) + 1) if font.getlength(word[:n]) > width) - 1)
            lines += [line] if line else []
            lines, line, word = [*lines, word[:cut]], "", word[cut:]
        joined = f"{line} {word}" if line else word
        if font.getlength(joined) > width and line:
            lines, line = [*lines, line], word
        else:
            line = joined
    return [*lines, line] if line else lines
