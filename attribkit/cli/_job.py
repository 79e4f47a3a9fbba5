"""The work of ``attribkit explain``: images in; a folder with a page, maps and a summary out."""

from __future__ import annotations

import json
import math
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attribkit.cli._group import describe, printable, report_failure
from attribkit.cli._output import OutputError, OutputFolder, file_names
from attribkit.errors import ImageError, InputError, PluginError, UnknownOptionError, did_you_mean
from attribkit.images import find_images, read_image
from attribkit.plugins import manager
from attribkit.progress import shown, track

if TYPE_CHECKING:
    from attribkit.cli._explainer import Explained, Explainer
    from attribkit.report.page import About, PageWriter


@dataclass(frozen=True)
class Job:
    """What ``attribkit explain`` was asked to do; the names are those of its options.

    Attributes
    ----------
    command
        The command line, for the page.
    caption
        What the page says of the images in place of their paths; None: the paths.
    """

    paths: tuple[str, ...]
    out: Path
    methods: tuple[str, ...]
    command: str
    model: str | None = None
    weights: str | None = None
    labels: str | None = None
    target: str = "auto"
    layer: str | None = None
    channel: int | None = None
    device: str | None = None
    caption: str | None = None
    options: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass
class Outcome:
    """What became of it.

    Attributes
    ----------
    explained, failed
        How many images were explained (by one method at least), and of how many something failed.
    page
        Where the page is; None when nothing was written.
    """

    explained: int = 0
    failed: int = 0
    page: Path | None = None


def run(job: Job) -> Outcome:
    """Explain the images and write the folder.

    The failure of one image is said on stderr and listed on the page, and the others are done. When none could be
    explained, nothing is written.

    Raises
    ------
    AttribkitError
        Something that concerns every image is wrong: the model, a method, an option, the target, the folder.
    """
    check_methods(job)
    with OutputFolder(job.out) as out:
        from attribkit.report.page import PageWriter

        with PageWriter() as page:
            tally = _Tally(page)
            explainer = _explain_all(job, out, tally)
            if explainer is not None and tally.outcome.explained:
                with out.writing("report.html") as path, open(path, "wb") as stream:
                    page.write(stream, explainer.about())
                with out.writing("summary.json") as path:
                    path.write_bytes(summary(explainer.about(), tally.entries))
                out.commit()
                tally.outcome.page = job.out / "report.html"
    return tally.outcome


def check_methods(job: Job) -> None:
    """Check the methods' names and options before any work is done.

    Raises
    ------
    UnknownNameError
        A method or an option is not known; the message suggests the nearest names.
    """
    entries = {name: manager().method(name) for name in job.methods}
    for name, options in job.options.items():
        if name not in entries:
            raise UnknownOptionError(f"option for method {name!r}, which is not used: {did_you_mean(name, entries)}")
        import attribkit

        known = attribkit.methods()[name].options
        for option in options:
            if option not in known:
                raise UnknownOptionError(f"method {name!r} has no option {option!r}: {did_you_mean(option, known)}")


def summary(about: About, entries: list[dict[str, Any]]) -> bytes:
    """Return the contents of ``summary.json``, UTF-8; numbers that JSON does not know are null."""
    content = {"model": about.model, "weights": about.weights, "attribkit": about.facts["attribkit"], "images": entries}
    content = _plain(content)
    try:
        return (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")
    except UnicodeEncodeError:  # a file name that is no text
        return (json.dumps(content, indent=2, allow_nan=False) + "\n").encode("ascii")


class _Tally:
    """Counts what was done, and puts it into the page and the summary."""

    def __init__(self, page: PageWriter) -> None:
        self.page = page
        self.entries: list[dict[str, Any]] = []
        self.outcome = Outcome()

    def add(self, path: str, explained: Explained) -> None:
        for error in explained.errors:
            report_failure(path, error)
        reason = "; ".join(describe(error) for error in explained.errors) or None
        self.outcome.explained += 1
        self.outcome.failed += reason is not None
        self.page.add(explained.section)
        self._enter(path, explained.top, explained.methods, reason)

    def fail(self, path: str, error: Exception) -> None:
        report_failure(path, error)
        reason = describe(error).removeprefix(f"{path}: ")
        self.outcome.failed += 1
        self.page.fail(printable(path), printable(reason))
        self._enter(path, [], {}, reason)

    def _enter(self, path: str, top: list[dict[str, Any]], methods: dict[str, Any], error: str | None) -> None:
        self.entries.append({"path": path, "top": top, "methods": methods, "error": error})


def _explain_all(job: Job, out: OutputFolder, tally: _Tally) -> Explainer | None:
    """Explain one image after the other; the model is loaded when the first image could be read."""
    paths = _gather(job.paths, tally)
    explainer: Explainer | None = None
    named = list(zip(paths, file_names(paths, job.methods), strict=True))
    with shown(sys.stderr.isatty()):
        for path, name in track(named, "images"):
            try:
                photograph = read_image(path)
            except ImageError as error:
                tally.fail(str(path), error)
                continue
            if explainer is None:
                from attribkit.cli._explainer import Explainer

                explainer = Explainer(job, out)
            try:
                explained = explainer.explain(photograph, path, name)
            except OutputError:
                raise
            except Exception as error:
                if isinstance(error, InputError | PluginError) and not tally.outcome.explained:
                    raise  # a wrong option is as wrong for the images to come
                tally.fail(str(path), error)
            else:
                tally.add(str(path), explained)
    return explainer


def _gather(given: tuple[str, ...], tally: _Tally) -> list[Path]:
    """Return the images that the arguments name, each once; a folder that has none is one failure among others."""
    found: dict[Path, None] = {}
    for path in given:
        try:
            found.update(dict.fromkeys(find_images(path)))
        except ImageError as error:
            tally.fail(path, error)
    return list(found)


def _plain(value: Any) -> Any:
    """Return JSON-ready containers: NaN and infinities become None, paths and other objects strings."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | bool | int):
        return value
    return os.fspath(value) if isinstance(value, os.PathLike) else str(value)
