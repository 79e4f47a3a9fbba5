"""The report: one self-contained HTML page.

The page needs no network: pictures are data URIs, style and script stand in the page, and its content security policy
forbids everything else (the script is allowed by its hash, so that nothing that slipped into the page could run).
Everything that is filled in is escaped. Sections are rendered as they come and kept in a spooled temporary file: a
report of many images does not have to fit in memory.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import groupby
from typing import IO, Any

import jinja2
from markupsafe import Markup

from attribkit.report.figures import PERCENTILE, LegendEntry, Picture, colour_bar

_SPOOL_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Figure:
    """One picture of the page.

    Attributes
    ----------
    kind
        ``signed``, ``magnitude``, ``colour``, ``score`` or ``classes``: decides on the scale below the picture.
    title
        A few words above the picture.
    picture
        The picture itself; of a ``magnitude``, the layer that lies over the photograph.
    alt
        What a reader who cannot see the picture is told.
    legend
        The classes of a class map.
    """

    kind: str
    title: str
    picture: Picture
    alt: str
    legend: tuple[LegendEntry, ...] = ()


@dataclass(frozen=True)
class MethodSection:
    """What one method said about one image.

    Attributes
    ----------
    name, title, summary
        The method's name as it is typed, as it is read, and its one-line summary.
    target
        The class or the unit that is explained, in words.
    score, probability
        The target's score and, of a class, its probability, formatted.
    seconds
        How long the method took.
    coverage
        Which operations were rewritten, in plain words.
    figures
        Its pictures.
    error
        Why there are none, where the method failed.
    source
        Where the method was published.
    group
        What the method came with; the methods of one group stand together under it.
    """

    name: str
    title: str
    summary: str
    target: str = ""
    score: str = ""
    probability: str = ""
    seconds: float | None = None
    coverage: str = ""
    figures: tuple[Figure, ...] = ()
    error: str | None = None
    source: str = ""
    group: str = ""


@dataclass(frozen=True)
class TopClass:
    """One of the most probable classes: index, name and probability (0 to 1)."""

    index: int
    label: str
    probability: float


@dataclass(frozen=True)
class ImageSection:
    """One explained image.

    Attributes
    ----------
    name
        The name of its files, unique in the report.
    path
        The file, as it was given.
    photograph, view
        The photograph, and what the model was shown of it.
    size
        Width and height of the photograph in pixels.
    top
        The most probable classes, the most probable first.
    methods
        What each method said.
    question
        What the methods answer, such as ``Why “tiger cat”?``: the page's heading when there is one image.
    """

    name: str
    path: str
    photograph: Picture
    view: Picture
    size: tuple[int, int]
    top: tuple[TopClass, ...]
    methods: tuple[MethodSection, ...]
    question: str = ""

    @property
    def groups(self) -> list[tuple[str, list[tuple[int, MethodSection]]]]:
        """The methods with their places, from 1, by what they came with; neighbours of one group stand together."""
        numbered = enumerate(self.methods, start=1)
        return [(group, list(those)) for group, those in groupby(numbered, key=lambda pair: pair[1].group)]

    @property
    def thumbnail(self) -> Picture:
        """The picture of the index."""
        return self.view


@dataclass(frozen=True)
class Failure:
    """An image that could not be explained, and why."""

    path: str
    error: str


@dataclass(frozen=True)
class About:
    """What made the page.

    Attributes
    ----------
    model, weights
        The model's name and where its weights came from.
    command
        The command line, or the call.
    facts
        Further rows of the table at the end of the page: device, versions, …
    """

    model: str
    weights: str
    command: str
    facts: Mapping[str, str] = field(default_factory=dict)


class PageWriter:
    """Collects sections and writes the page.

    Use it as a context manager: ``add`` each image (or ``fail`` it), then ``write`` once.
    """

    def __init__(self) -> None:
        self._spool: IO[bytes] = tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES)  # noqa: SIM115
        self._index: list[dict[str, Any]] = []
        self._failures: list[Failure] = []

    def __enter__(self) -> PageWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        self._spool.close()

    def add(self, section: ImageSection) -> None:
        """Render one image's section."""
        anchor = f"image-{len(self._index) + 1}"
        html = environment().get_template("image.html.j2").render(image=section, anchor=anchor)
        self._spool.write(_encoded(html))
        best = section.top[0] if section.top else None
        failed = [method.name for method in section.methods if method.error is not None]
        self._index.append(
            {
                "anchor": anchor,
                "name": section.name,
                "best": best,
                "thumbnail": section.thumbnail,
                "failed": failed,
                "question": section.question,
            }
        )

    def fail(self, path: str, error: str) -> None:
        """List an image that could not be explained."""
        self._failures.append(Failure(path, error))

    def write(self, stream: IO[bytes], about: About) -> None:
        """Write the page, UTF-8, into a binary stream."""
        template = environment().get_template("report.html.j2")
        parts = template.generate(
            about=about, index=self._index, failures=self._failures, sections=self._sections(), **_constants()
        )
        for part in parts:
            stream.write(_encoded(part))

    def _sections(self) -> Iterator[Markup]:
        self._spool.seek(0)
        while chunk := self._spool.readline():
            yield Markup(chunk.decode("utf-8"))  # was rendered, and escaped, by `add`
        self._spool.seek(0, 2)


def render_page(about: About, images: Sequence[ImageSection], failures: Sequence[Failure] = ()) -> str:
    """Return a whole page as a string, for few images."""
    with PageWriter() as page, tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES) as stream:
        for image in images:
            page.add(image)
        for failure in failures:
            page.fail(failure.path, failure.error)
        page.write(stream, about)
        stream.seek(0)
        return stream.read().decode("utf-8")


def data_uri(picture: Picture) -> str:
    """Return a picture as a ``data:`` URI."""
    return f"data:{picture.mime};base64,{base64.b64encode(picture.data).decode('ascii')}"


def _encoded(html: str) -> bytes:
    # File names may hold bytes that are no text (lone surrogates): they are shown as question marks.
    return html.encode("utf-8", "replace")


@lru_cache(maxsize=1)
def environment() -> jinja2.Environment:
    """Return the templates' environment: everything that is filled in is escaped, an undefined name is an error."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("attribkit.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(data_uri=data_uri, number=_number, seconds=_seconds, percent=percent)
    return environment


@lru_cache(maxsize=1)
def _constants() -> dict[str, Any]:
    """Return the style, the script and its hash, and the colour scales: the same on every page."""
    script = _source("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    return {
        "style": Markup(_source("report.css")),
        "script": Markup(script),
        "script_hash": f"sha256-{digest}",
        "percentile": f"{PERCENTILE:g}",
        "bars": {kind: colour_bar(kind) for kind in ("signed", "magnitude", "score")},
    }


def _source(name: str) -> str:
    return (importlib.resources.files("attribkit.report") / "templates" / name).read_text(encoding="utf-8")


def _number(value: float) -> str:
    """Format a value with three digits and a true minus sign."""
    return f"{value:.3g}".replace("-", "\N{MINUS SIGN}")


def _seconds(value: float) -> str:
    return f"{value:.2f}\N{NO-BREAK SPACE}s" if value < 10 else f"{value:.0f}\N{NO-BREAK SPACE}s"


def percent(probability: float) -> str:
    """Format a probability (0 to 1) as a percentage."""
    share = 100 * probability
    return "< 0.1\N{NO-BREAK SPACE}%" if 0 < share < 0.1 else f"{share:.1f}\N{NO-BREAK SPACE}%"
