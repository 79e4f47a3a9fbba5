"""The page's overview: a row for each image, a column for each method."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from itertools import groupby

from PIL import Image, features

from attribkit.report.figures import Picture
from attribkit.report.parts import Failure, ImageSection, MethodSection, TopClass

THUMBNAIL = 112
"""The longest side, in pixels, of the pictures that stand in the matrix until a script puts the maps there."""


@dataclass(frozen=True)
class Cell:
    """What stands in a row for one method: its signed map, small, or why there is none.

    Attributes
    ----------
    anchor, title
        Where on the page the method's section is, and what the method is called.
    picture, alt
        The small map and what it shows in words.
    limit
        Where the colours of the map end.
    error
        Why there is no map.
    """

    anchor: str
    title: str
    picture: Picture | None
    alt: str = ""
    limit: float = 0.0
    error: str | None = None


@dataclass(frozen=True)
class Row:
    """One image of the matrix, or one that could not be explained: the ``failure``."""

    anchor: str
    name: str
    path: str
    best: TopClass | None = None
    score: str = ""
    value: float | None = None
    target: str = ""
    question: str = ""
    picture: Picture | None = None
    problem: str = ""
    cells: dict[str, Cell] = field(default_factory=dict)
    failure: Failure | None = None

    @property
    def failed(self) -> list[Cell]:
        """The cells of the methods that failed."""
        return [cell for cell in self.cells.values() if cell.error is not None]

    @property
    def text(self) -> str:
        """What a filter looks through."""
        parts = [self.name, self.path, self.best.label if self.best else "", self.target, self.problem]
        parts += [f"failed {cell.error}" for cell in self.failed]
        parts += [f"failed {self.failure.error}"] if self.failure else []
        return " ".join(parts).lower()  # as the page's script does with what is searched


class Matrix:
    """Collects the rows, in the images' order, and the methods that any of them has.

    Attributes
    ----------
    rows
        The images, those that failed among them.
    columns
        From each method's name to its title and to what it came with.
    """

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.columns: dict[str, tuple[str, str]] = {}

    @property
    def images(self) -> list[Row]:
        """The rows of images that were explained."""
        return [row for row in self.rows if row.failure is None]

    @property
    def failures(self) -> list[Failure]:
        """The others."""
        return [row.failure for row in self.rows if row.failure is not None]

    @property
    def groups(self) -> list[tuple[str, int]]:
        """What the columns came with, and how many neighbours came with it."""
        return [(group, len(list(those))) for group, those in groupby(group for _, group in self.columns.values())]

    def add(self, section: ImageSection) -> Row:
        """Add an image; its row knows the anchor of its section."""
        anchor = f"image-{len(self.images) + 1}"
        cells = {}
        for number, method in enumerate(section.methods, start=1):
            self.columns.setdefault(method.name, (method.title, method.group))
            cells[method.name] = _cell(method, f"{anchor}-{number}")
        told = next((method for method in section.methods if method.error is None), None)
        row = Row(
            anchor,
            section.name,
            section.path,
            best=section.top[0] if section.top else None,
            score=told.score if told else "",
            value=told.value if told else None,
            target=told.target if told else "",
            question=section.question,
            picture=small(section.view),
            problem=section.problem,
            cells=cells,
        )
        self.rows.append(row)
        return row

    def fail(self, failure: Failure) -> None:
        """Add an image that could not be explained."""
        number = len(self.rows) - len(self.images) + 1
        self.rows.append(Row(f"failure-{number}", failure.path, "", failure=failure))


def _cell(method: MethodSection, anchor: str) -> Cell:
    signed = next((figure for figure in method.figures if figure.kind == "signed"), None)
    if method.error is not None or signed is None:
        return Cell(anchor, method.title, None, error=method.error)
    return Cell(anchor, method.title, small(signed.picture), signed.alt, signed.picture.high)


def small(picture: Picture, longest: int = THUMBNAIL) -> Picture:
    """Return a picture made small, as WebP (JPEG where pillow lacks it)."""
    with Image.open(io.BytesIO(picture.data)) as image:
        made = image.convert("RGB")
    if max(made.size) > longest:
        made.thumbnail((longest, longest), Image.Resampling.BOX)
    kind, mime = ("WEBP", "image/webp") if features.check("webp") else ("JPEG", "image/jpeg")
    buffer = io.BytesIO()
    made.save(buffer, kind, quality=60)
    return Picture(buffer.getvalue(), made.width, made.height, mime=mime)
