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
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import IO, Any

import jinja2
from markupsafe import Markup

from attribkit.report.figures import PERCENTILE, Picture, colour_bar
from attribkit.report.levels import palette
from attribkit.report.matrix import Matrix
from attribkit.report.palette import gradient
from attribkit.report.parts import About, Failure, ImageSection

__all__ = ["PageWriter", "data_uri", "environment", "percent", "render_page"]

_SPOOL_BYTES = 64 * 2**20


class PageWriter:
    """Collects sections and writes the page.

    Use it as a context manager: ``add`` each image (or ``fail`` it), then ``write`` once.
    """

    def __init__(self) -> None:
        self._spool: IO[bytes] = tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES)  # noqa: SIM115
        self._matrix = Matrix()

    def __enter__(self) -> PageWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        self._spool.close()

    def add(self, section: ImageSection) -> None:
        """Render one image's section."""
        row = self._matrix.add(section)
        html = environment().get_template("image.html.j2").render(image=section, anchor=row.anchor)
        self._spool.write(_encoded(html))

    def fail(self, path: str, error: str) -> None:
        """List an image that could not be explained."""
        self._matrix.fail(Failure(path, error))

    def write(self, stream: IO[bytes], about: About) -> None:
        """Write the page, UTF-8, into a binary stream."""
        template = environment().get_template("report.html.j2")
        parts = template.generate(about=about, matrix=self._matrix, sections=self._sections(), **_constants())
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
    scales = "".join(f"--{kind}:{gradient(palette(kind))};" for kind in ("signed", "magnitude", "score"))
    style = f":root{{{scales}}}\n{_source('report.css')}"
    return {
        "style": Markup(style),
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
