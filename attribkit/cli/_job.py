"""The work of ``attribkit explain``: images in; a folder with a page, maps and a summary out."""

from __future__ import annotations

import json
import math
import os
import sys
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attribkit.cli._group import describe, printable, report_failure
from attribkit.cli._output import OutputError, OutputFolder, file_names
from attribkit.errors import ImageError, InputError, MethodError, PluginError, UnknownOptionError, did_you_mean
from attribkit.images import read_image
from attribkit.plugins import manager
from attribkit.progress import shown, track
from attribkit.runs.listing import list_images
from attribkit.store.layout import INDEX, Place

EVERY = "all"
"""Stands for every method there is."""

FEW = 4
"""So many images are explained without a store, unless one is asked for."""

if TYPE_CHECKING:
    from attribkit.cli._explainer import Explained, Explainer
    from attribkit.report.page import PageWriter
    from attribkit.report.parts import About


@dataclass(frozen=True)
class Job:
    """What ``attribkit explain`` was asked to do; the names are those of its options.

    Attributes
    ----------
    command
        The command line, for the page.
    caption
        What the page says of the images in place of their paths; None: the paths.
    every
        Whether every method there is was asked for: one that does not take the model is then one failure among others.
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
    every: bool = False
    store: bool = False
    batch_size: int | None = None
    workers: int | None = None
    threads: int | None = None
    half: bool = False
    shrink: int = 1
    retry: bool = False


@dataclass
class Outcome:
    """What became of it.

    Attributes
    ----------
    explained, failed
        How many images were explained (by one method at least), and of how many something failed.
    page, store
        Where they are; None where there is none.
    speaks
        Whether this process, of several, says so.
    """

    explained: int = 0
    failed: int = 0
    page: Path | None = None
    store: Path | None = None
    speaks: bool = True


def run(job: Job) -> Outcome:
    """Explain the images and write the folder: for few images at once, for many by way of a store.

    The failure of one image is said on stderr and listed on the page, and the others are done. When none could be
    explained, nothing is written.

    Raises
    ------
    AttribkitError
        Something that concerns every image is wrong: the model, a method, an option, the target, the folder.
    """
    job = with_every_method(job)
    check_methods(job)
    places = _few(job)
    if places is None:
        from attribkit.cli._stored import run_stored

        return run_stored(job)
    with OutputFolder(job.out) as out:
        from attribkit.report.page import PageWriter

        with PageWriter() as page:
            tally = Tally(page)
            explainer = _explain_all(job, out, places, tally)
            if explainer is not None and tally.outcome.explained:
                tally.write(out, explainer.about())
    return tally.outcome


def _few(job: Job) -> list[Place] | None:
    """Return the images where they are so few that they need no store, else None."""
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if job.store or several or has_store(job.out):
        return None
    places = list(islice(list_images(job.paths), FEW + 1))
    return places if len(places) <= FEW and not any(place.size for place in places) else None


def has_store(folder: Path) -> bool:
    """Tell whether a folder is a store's."""
    return (folder / INDEX).exists()


def with_every_method(job: Job) -> Job:
    """Return the job with the name `EVERY` replaced by every method there is, by what brought them."""
    if EVERY not in job.methods:
        return job
    others = [name for name in job.methods if name != EVERY]
    return replace(job, methods=tuple(dict.fromkeys([*manager().methods, *others])), every=True)


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


class SaidBefore(MethodError):
    """A failure that was said when it happened: the page repeats it, stderr does not."""


class Tally:
    """Counts what was done, and puts it into the page and the summary.

    Parameters
    ----------
    page
        The page.
    """

    def __init__(self, page: PageWriter) -> None:
        self.page = page
        self.entries: list[dict[str, Any]] = []
        self.outcome = Outcome()

    def add(self, path: str, explained: Explained) -> None:
        """Note an image that was explained, by one method at least."""
        for error in explained.errors:
            _say(path, error)
        reason = "; ".join(describe(error) for error in explained.errors) or None
        self.outcome.explained += 1
        self.outcome.failed += reason is not None
        self.page.add(explained.section)
        self._enter(path, explained.top, explained.methods, reason)

    def fail(self, path: str, error: Exception) -> None:
        """Note an image that failed."""
        _say(path, error)
        reason = describe(error).removeprefix(f"{path}: ")
        self.outcome.failed += 1
        self.page.fail(printable(path), printable(reason))
        self._enter(path, [], {}, reason)

    def write(self, out: OutputFolder, about: About) -> None:
        """Write page and summary, and let everything appear."""
        with out.writing("report.html") as path, open(path, "wb") as stream:
            self.page.write(stream, about)
        with out.writing("summary.json") as path:
            path.write_bytes(summary(about, self.entries))
        out.commit()
        self.outcome.page = out.path / "report.html"

    def _enter(self, path: str, top: list[dict[str, Any]], methods: dict[str, Any], error: str | None) -> None:
        self.entries.append({"path": path, "top": top, "methods": methods, "error": error})


def _explain_all(job: Job, out: OutputFolder, places: list[Place], tally: Tally) -> Explainer | None:
    """Explain one image after the other; the model is loaded when the first image could be read."""
    paths = _gather(places, tally)
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

                explainer = Explainer(job, out, images=len(named))
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


def _gather(places: list[Place], tally: Tally) -> list[Path]:
    """Return the images' files, each once; a folder that has none is one failure among others."""
    found: dict[Path, None] = {}
    for place in places:
        if place.problem is not None:
            tally.fail(place.image, ImageError(f"{place.image}: {place.problem}"))
        else:
            found[Path(place.file)] = None
    return list(found)


def _say(path: str, error: Exception) -> None:
    if not isinstance(error, SaidBefore) and not isinstance(error.__cause__, SaidBefore):
        report_failure(path, error)


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
