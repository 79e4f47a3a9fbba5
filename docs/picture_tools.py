"""What the scripts that make the documentation's pictures share: panels in a strip, numbers put into a page."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from PIL import Image, ImageDraw
from torch import Tensor

import attribkit as ak
from attribkit.attribution import write_atomically
from attribkit.images import read_image, sample_image_path
from attribkit.report import figures
from attribkit.report.levels import palette, shrunk
from attribkit.report.overlay import font_of

HERE = Path(__file__).parent
IMAGES = HERE / "images"
#: A panel's side in pixels, the space between panels, and a caption line's height.
SIDE, GAP, LINE = 176, 10, 17
#: Colours that the colour-blind tell apart.
_, ORANGE, GREEN, _, _, RED, BLUE = figures.CLASS_COLOURS
GREY = figures.OTHER_COLOUR
#: The palette of signed maps, for matplotlib.
SIGNED = ListedColormap(palette("signed") / 255)
_MARKERS = "<!-- numbers: {} -->\n{}<!-- end -->"


@dataclass(frozen=True)
class Panel:
    """A picture with one or two lines below it."""

    image: Image.Image
    title: str
    note: str = ""


def opened(picture: figures.Picture) -> Image.Image:
    """Decode what the product draws."""
    return Image.open(io.BytesIO(picture.data)).convert("RGB")


def signed(heat: Tensor) -> Image.Image:
    """Draw a map [H, W]: red positive, blue negative, nearly white zero."""
    return opened(figures.signed_map(heat.detach()[None].numpy(), SIDE))


def heat(values: Tensor) -> Image.Image:
    """Draw a map [H, W] that is nowhere negative: black zero, bright large."""
    found = shrunk(values.detach().double().numpy(), SIDE)
    return figures.coloured(figures.scaled(found, figures.robust_limit(found)), figures.MAGNITUDE_COLOURS)


def colours(values: Tensor) -> Image.Image:
    """Draw a map [3, H, W] as colours around mid-grey, which is zero."""
    return opened(figures.reconstruction(values.detach().numpy(), SIDE))


def strip(rows: Sequence[Sequence[Panel]], name: str, most: int = 300_000) -> None:
    """Compose rows of panels and write them as a PNG of few colours, smaller than ``most`` bytes."""
    width = max(len(row) for row in rows) * (SIDE + GAP) - GAP
    height = len(rows) * (SIDE + 2 * LINE + GAP)
    canvas = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(canvas)
    for j, row in enumerate(rows):
        for i, panel in enumerate(row):
            left, top = i * (SIDE + GAP), j * (SIDE + 2 * LINE + GAP)
            larger = panel.image.width < SIDE
            how = Image.Resampling.NEAREST if larger else Image.Resampling.BOX
            canvas.paste(panel.image.convert("RGB").resize((SIDE, SIDE), how), (left, top))
            draw.rectangle((left, top, left + SIDE - 1, top + SIDE - 1), outline="#dddddd")
            draw.text((left, top + SIDE + 2), panel.title, fill="#111111", font=font_of(12))
            draw.text((left, top + SIDE + 2 + LINE), panel.note, fill="#555555", font=font_of(11))
            for text, size in ((panel.title, 12), (panel.note, 11)):
                if draw.textlength(text, font=font_of(size)) > SIDE + GAP:
                    raise ValueError(f"{name}: {text!r} is wider than its panel")
    for count in (256, 128, 64):
        buffer = io.BytesIO()
        canvas.quantize(count, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
        if buffer.tell() < most:
            break
    else:
        raise ValueError(f"{name}.png takes {buffer.tell()} bytes")
    IMAGES.mkdir(exist_ok=True)
    write_atomically(IMAGES / f"{name}.png", buffer.getvalue())


def chart(figure: Figure, name: str, dpi: int = 100) -> None:
    """Write a matplotlib figure, the same bytes for the same figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    drawn = Image.open(buffer).convert("RGB").quantize(128, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    drawn.save(buffer, "PNG", optimize=True)
    IMAGES.mkdir(exist_ok=True)
    write_atomically(IMAGES / f"{name}.png", buffer.getvalue())


def numbers(name: str, text: str) -> None:
    """Put text between the markers of that name, in whichever page has them."""
    pattern = re.compile(rf"<!-- numbers: {re.escape(name)} -->\n.*?<!-- end -->", re.DOTALL)
    for page in sorted(HERE.glob("*.md")):
        before = page.read_text("utf-8")
        if pattern.search(before):
            after = pattern.sub(lambda _: _MARKERS.format(name, text.rstrip("\n") + "\n"), before)
            if after != before:
                write_atomically(page, after.encode("utf-8"))
            return
    print(f"no page has the markers <!-- numbers: {name} -->:\n{text}")


@cache
def efficientnet() -> Any:
    """Return EfficientNet-Lite0 with its trained weights (extra ``imagenet``)."""
    return ak.load_model("timm/tf_efficientnet_lite0")


@cache
def photograph() -> Tensor:
    """Return the sample photograph as EfficientNet-Lite0's input [1, 3, 224, 224]."""
    return efficientnet().preprocess(read_image(sample_image_path()))[None]


def view() -> Image.Image:
    """Return the photograph as the model sees it."""
    return figures.model_view(efficientnet().denormalize(photograph())[0].numpy())


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Return Spearman's rank correlation; nan where a map is constant."""
    ranks = []
    for values in (a, b):
        _, inverse, counts = values.flatten().double().unique(return_inverse=True, return_counts=True)
        ends = counts.cumsum(0).double()
        ranks.append((ends - (counts - 1) / 2)[inverse])  # ties share their mean rank
    return float(torch.corrcoef(torch.stack(ranks))[0, 1])


def two_digits(number: float) -> str:
    """Return a number with two digits, the minus of the typesetters, and no minus before a zero."""
    return f"{number:.2f}".replace("-0.00", "0.00").replace("-", "−")
