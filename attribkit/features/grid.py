"""Drawing projections and patches: tiles, sprites of tiles, and a sheet in the manner of the paper's Fig. 2."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from attribkit.features.crops import Crops
from attribkit.report.figures import around_grey, robust_limit
from attribkit.report.overlay import font_of

SMALLEST, LARGEST = 40, 112
"""The tiles' sides in pixels: smaller fields are enlarged by a whole factor, larger ones reduced."""

INK, SOFT, PAPER, RULE = "#1c1d20", "#5f6168", "#ffffff", "#d9dade"


@dataclass(frozen=True)
class Sprite:
    """Tiles of some maps in one picture: a row a map, first its projections, then its patches.

    Attributes
    ----------
    data : bytes
        The file; ``suffix`` is its kind: PNG for enlarged tiles, else JPEG.
    width, height : int
        A tile's size in pixels.
    """

    data: bytes
    suffix: str
    width: int
    height: int


def tiles_of(crops: Crops, row: int) -> list[tuple[Image.Image, Image.Image]]:
    """Return the projections and patches of a map as pictures, in order of rank.

    Projections are drawn around mid-grey, which is 0: brighter is positive, darker negative. The nine of a map share
    one scale, which ends at the 99.5th percentile of their non-zero absolute values.
    """
    projections = np.asarray(crops.projections[row], dtype=np.float64)
    limit = robust_limit(projections)
    patches = np.asarray(crops.patches[row])
    width, height, enlarged = tile_size(*projections.shape[-2:])
    how = Image.Resampling.NEAREST if enlarged else Image.Resampling.LANCZOS
    return [
        (around_grey(a, limit).convert("RGB").resize((width, height), how), _picture(b).resize((width, height), how))
        for a, b in zip(projections, patches, strict=True)
    ]


def tile_size(height: int, width: int) -> tuple[int, int, bool]:
    """Return width and height of the tile of a window, and whether it is enlarged."""
    side = max(height, width)
    if side < SMALLEST:
        factor = math.ceil(SMALLEST / side)
        return width * factor, height * factor, True
    scale = min(1.0, LARGEST / side)
    # whole blocks of a JPEG, so that no tile's colours run into its neighbour's
    return max(8, round(width * scale / 8) * 8), max(8, round(height * scale / 8) * 8), False


def sprite(crops: Crops) -> Sprite:
    """Return all tiles of some maps in one picture."""
    width, height, enlarged = tile_size(*crops.projections.shape[-2:])
    count = crops.projections.shape[1]
    sheet = Image.new("RGB", (2 * count * width, len(crops.channels) * height))
    for row in range(len(crops.channels)):
        for rank, (projection, patch) in enumerate(tiles_of(crops, row)):
            sheet.paste(projection, (rank * width, row * height))
            sheet.paste(patch, ((count + rank) * width, row * height))
    file = io.BytesIO()
    if enlarged:
        sheet.save(file, "PNG", optimize=True)
        return Sprite(file.getvalue(), ".png", width, height)
    sheet.save(file, "JPEG", quality=88, subsampling=0)
    return Sprite(file.getvalue(), ".jpg", width, height)


class ContactSheet:
    """One picture of many maps: a cell a map, the block of projections beside the block of patches.

    Parameters
    ----------
    maps
        How many maps there will be.
    pixels
        About how many pixels the picture may have.
    """

    def __init__(self, maps: int, top: int, pixels: float = 5e6) -> None:
        self.side = math.ceil(math.sqrt(top))
        self.top, self.maps = top, maps
        self.columns = max(1, round(math.sqrt(maps / 2)))
        room = math.sqrt(pixels / max(maps, 1) / 2) / self.side
        self.tile = max(16, min(LARGEST, int(room)))
        self._cells: list[tuple[int, Image.Image]] = []

    def add(self, crops: Crops) -> None:
        """Add the maps of some crops."""
        for row, channel in enumerate(crops.channels):
            pairs = tiles_of(crops, row)
            ratio = pairs[0][0].height / pairs[0][0].width
            size = (self.tile, max(1, round(self.tile * ratio)))
            how = Image.Resampling.NEAREST if pairs[0][0].width <= SMALLEST * 2 else Image.Resampling.LANCZOS
            block = self._block(size)
            for rank, pair in enumerate(pairs):
                y, x = divmod(rank, self.side)
                for which, tile in enumerate(pair):
                    left = x * (size[0] + 2) + which * (self.side * (size[0] + 2) + 6)
                    block.paste(tile.resize(size, how), (left, y * (size[1] + 2)))
            self._cells.append((channel, block))

    def _block(self, size: tuple[int, int]) -> Image.Image:
        rows = math.ceil(self.top / self.side)
        return Image.new("RGB", (2 * self.side * (size[0] + 2) + 4, rows * (size[1] + 2) - 2), PAPER)

    def picture(self, title: str, details: str) -> Image.Image:
        """Return the sheet, with two lines above it."""
        width, height = self._cells[0][1].size if self._cells else (1, 1)
        gap, label, margin = 18, 20, 24
        rows = math.ceil(len(self._cells) / self.columns)
        size = (
            max(520, 2 * margin + self.columns * (width + gap) - gap),
            2 * margin + 62 + rows * (height + label + gap) - gap,
        )
        sheet = Image.new("RGB", size, PAPER)
        draw = ImageDraw.Draw(sheet)
        draw.text((margin, margin - 4), title, fill=INK, font=font_of(22, True))
        draw.text((margin, margin + 28), details, fill=SOFT, font=font_of(13))
        for index, (channel, block) in enumerate(self._cells):
            row, column = divmod(index, self.columns)
            x, y = margin + column * (width + gap), margin + 62 + row * (height + label + gap)
            draw.text((x, y), str(channel), fill=SOFT, font=font_of(12, True))
            sheet.paste(block, (x, y + label))
        return sheet


def png(picture: Image.Image) -> bytes:
    """Return a picture as a PNG file."""
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return file.getvalue()


def thumbnail(sheet: Image.Image) -> bytes:
    """Return the upper left of a sheet, below its title, as a small JPEG of 4 to 3."""
    width = min(sheet.width, max(640, sheet.width // 2))
    part = sheet.crop((12, 74, 12 + width, 74 + width * 3 // 4))
    file = io.BytesIO()
    part.resize((640, 480), Image.Resampling.LANCZOS).save(file, "JPEG", quality=85)
    return file.getvalue()


def _picture(values: Any) -> Image.Image:
    """Return uint8 values [C, h, w] as a picture: 3 channels as colours, any other number as their grey mean."""
    if len(values) == 3:
        return Image.fromarray(np.ascontiguousarray(values.transpose(1, 2, 0)))
    return Image.fromarray(np.rint(values.mean(0)).astype(np.uint8)).convert("RGB")


def columns_of(top: int) -> int:
    """Return how many tiles stand side by side in a block of ``top``."""
    return math.ceil(math.sqrt(top))
