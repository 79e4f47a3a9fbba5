"""What the scripts that make the documentation's pictures share: panels in a strip, numbers put into a page."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

import attribkit as ak
from attribkit.attribution import write_atomically
from attribkit.images import read_image, sample_image_path

HERE = Path(__file__).parent
IMAGES = HERE / "images"
#: A panel's side in pixels, the space between panels, and a caption line's height.
SIDE, GAP, LINE = 176, 10, 17
#: Colours that the colour-blind tell apart (Okabe and Ito).
BLUE, ORANGE, GREEN, GREY, RED = "#0072B2", "#E69F00", "#009E73", "#8C8C8C", "#D55E00"
_MARKERS = "<!-- numbers: {} -->\n{}<!-- end -->"


@dataclass(frozen=True)
class Panel:
    """A picture with one or two lines below it."""

    image: Image.Image
    title: str
    note: str = ""


def font(size: int) -> Any:
    """Return DejaVu Sans, which comes with matplotlib."""
    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)


def shrunk(values: Tensor) -> np.ndarray:
    """Return a map [..., H, W] as it is drawn: averaged down to the panel's side, before it is given colours."""
    values = values.detach().double()
    if values.shape[-1] > SIDE:
        values = torch.nn.functional.interpolate(values.reshape(1, -1, *values.shape[-2:]), (SIDE, SIDE), mode="area")[
            0
        ]
    return values.numpy()


def limit(values: np.ndarray) -> float:
    """Return where colours saturate: the 99.5th percentile of the absolute values that are not zero."""
    found = np.abs(values[values != 0])
    return float(np.percentile(found, 99.5)) if found.size else 1.0


def signed(heat: Tensor) -> Image.Image:
    """Draw a map [H, W]: red positive, blue negative, white zero."""
    values = shrunk(heat).reshape(-1, min(SIDE, heat.shape[-1]))
    scaled = np.clip(values / limit(values), -1, 1) / 2 + 0.5
    return Image.fromarray((matplotlib.colormaps["RdBu_r"](scaled)[..., :3] * 255).round().astype(np.uint8))


def heat(values: Tensor) -> Image.Image:
    """Draw a map [H, W] that is nowhere negative: black zero, bright large."""
    found = shrunk(values).reshape(-1, min(SIDE, values.shape[-1]))
    scaled = np.clip(found / limit(found), 0, 1)
    return Image.fromarray((matplotlib.colormaps["inferno"](scaled)[..., :3] * 255).round().astype(np.uint8))


def colours(values: Tensor) -> Image.Image:
    """Draw a map [3, H, W] as colours around mid-grey, which is zero."""
    found = shrunk(values)
    scaled = np.clip(found / limit(found), -1, 1) / 2 + 0.5
    return Image.fromarray((scaled.transpose(1, 2, 0) * 255).round().astype(np.uint8))


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
            draw.text((left, top + SIDE + 2), panel.title, fill="#111111", font=font(12))
            draw.text((left, top + SIDE + 2 + LINE), panel.note, fill="#555555", font=font(11))
            for text, size in ((panel.title, 12), (panel.note, 11)):
                if draw.textlength(text, font=font(size)) > SIDE + GAP:
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
    pixels = efficientnet().denormalize(photograph())[0].clamp(0, 1)
    return Image.fromarray((pixels.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy())


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
