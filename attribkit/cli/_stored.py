"""``attribkit explain`` of many images: into a store, and from a store to a page."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch

from attribkit.attribution import Attribution, provenance
from attribkit.cli._explainer import Explainer
from attribkit.cli._group import report_failure, say_error
from attribkit.cli._job import Job, Outcome, SaidBefore, Tally
from attribkit.cli._output import OutputError, OutputFolder, file_names
from attribkit.cli._session import Session
from attribkit.engine.coverage import Coverage
from attribkit.errors import ImageError, InputError, MethodError
from attribkit.models.building import count_classes
from attribkit.models.labels import read_labels
from attribkit.progress import shown, track
from attribkit.report.page import PageWriter
from attribkit.runs.loop import in_words, run
from attribkit.runs.plan import Plan
from attribkit.runs.ranks import own_device
from attribkit.runs.reading import Opener
from attribkit.store.layout import DONE, Place
from attribkit.store.reader import Store, open_store
from attribkit.targets import Unit

if TYPE_CHECKING:
    from torch import Tensor

    from attribkit.store.records import Record

_NOT_YET = "is not explained yet"

PAGE = 50
"""Up to so many images a run writes the page and the pictures too."""

SAID = 20
"""So many failures are said one by one; all of them stand in the store."""

GROUPS = 5
"""So many kinds of failures are listed at the end."""


def run_stored(job: Job) -> Outcome:
    """Explain images into a store; the failures of the whole store count, whoever did what is in it.

    Raises
    ------
    AttribkitError
        Something that concerns every image is wrong, or the store is of another run.
    """
    session = Session(job.model, job.weights, job.labels, job.device)
    session.model = session.loaded.model = session.model.to(own_device(session.device))
    session.device = own_device(session.device)
    classes = count_classes(session.model)
    if job.labels is not None and classes is not None:
        read_labels(job.labels, classes)  # says how many there must be
    unit = Unit(job.layer, job.channel) if job.layer is not None and job.channel is not None else None
    plan = Plan(
        sources=job.paths,
        out=job.out,
        methods=job.methods,
        options=job.options,
        target=unit if unit is not None else session.class_target(job.target),
        batch_size=job.batch_size,
        workers=job.workers,
        threads=job.threads,
        half=job.half,
        shrink=job.shrink,
        every=job.every,
        retry=job.retry,
        labels=session.labels,
        weights=job.weights,
        command=job.command,
    )
    said: list[str] = []

    def failed(image: str, reason: str) -> None:
        said.append(image)
        if len(said) <= SAID:
            report_failure(image, ImageError(f"{image}: {reason}"))

    leads = os.environ.get("RANK", "0") == "0"
    with ended_by_sigterm():
        done = run(plan, session.loaded, failed=failed, progress=leads and sys.stderr.isatty())
        outcome = Outcome(done.explained, done.failed, None, job.out, leads)
        if not leads:
            return outcome
        store = open_store(job.out)
        if done.failed > min(len(said), SAID):
            say_kinds(store.reasons())
        if 0 < done.images <= PAGE and done.explained:
            drawn = write_page(job, store, session, range(done.images), job.out)
            outcome.page = drawn.page
            outcome.failed = max(outcome.failed, drawn.failed)
    return outcome


def write_page(
    job: Job, store: Store, session: Session, positions: Iterable[int], out: Path, maps: bool = True
) -> Outcome:
    """Draw images of a store: page, pictures and summary; with ``maps`` each map as a file of its own too.

    What failed only now (an image that is gone, a model that does not take an image alone) is said on stderr: the rest
    was said when it failed.

    Returns
    -------
    Outcome
        Its page is None where not one of the images has a map.
    """
    chosen = [(position, Place(*store.place(position))) for position in positions]
    names = file_names([Path(place.image) for _, place in chosen], job.methods)
    opener = Opener()
    with OutputFolder(out) as folder, PageWriter() as page, shown(sys.stderr.isatty()):
        tally = Tally(page)
        explainer = Explainer(job, folder, session, maps, len(chosen))
        for (position, place), name in track(list(zip(chosen, names, strict=True)), "drawing"):
            records = {record.method: record for record in store.of_images(position, 1)}
            try:
                if not any(record.status == DONE for record in records.values()):
                    reasons = [(record.method, record.error or "") for record in records.values()]
                    raise SaidBefore(in_words(reasons, len(job.methods))) if reasons else ImageError(_NOT_YET)
                photograph = opener.read(place)
                explained = explainer.explain(
                    photograph, Path(place.image), name, _Kept(store, session, records).compute
                )
            except (InputError, OutputError):
                raise  # a wrong option, a full disk
            except Exception as error:
                tally.fail(place.image, error)
            else:
                tally.add(place.image, explained)
        opener.close()
        if tally.outcome.explained:
            tally.write(folder, explainer.about())
    return tally.outcome


class _Kept:
    """Gives what the store keeps of an image in place of computing it."""

    def __init__(self, store: Store, session: Session, records: dict[str, Record]) -> None:
        self.store, self.session, self.records = store, session, records

    def compute(self, method: str, inputs: Tensor, target: Unit | int | None) -> tuple[Attribution, float]:
        record = self.records.get(method)
        values = record.values if record is not None else None
        if record is None or values is None:
            raise SaidBefore(record.error) if record is not None and record.error else MethodError(_NOT_YET)
        if values.shape[-2:] != inputs.shape[-2:]:  # it was shrunk
            values = torch.nn.functional.interpolate(values[None].float(), inputs.shape[-2:], mode="nearest")[0]
        noted = self.store.about["methods"][method]
        options = noted.get("options") if isinstance(noted, dict) else None
        result = Attribution(
            values=values[None],
            method=method,
            target=record.target if isinstance(record.target, Unit) else torch.tensor([record.target]),
            scores=torch.tensor([record.score], dtype=values.dtype),
            coverage=_coverage(self.store.note(f"coverage {method}"), method),
            extras={name: tensor[None] for name, tensor in record.extras.items()},
            provenance=provenance(self.session.model, options if isinstance(options, dict) else {}),
        )
        return result, self.store.seconds(record.batch).get(method, 0.0)


def _coverage(noted: Any, method: str) -> Coverage:
    try:
        kinds = {str(kind): (int(done), int(total)) for kind, (done, total) in noted["kinds"].items()}
        left = tuple((str(name), str(reason)) for name, reason in noted["left"])
        return Coverage(**{**noted, "kinds": kinds, "left": left})
    except (KeyError, TypeError, ValueError, AttributeError):
        return Coverage(method, applies=False)


def say_kinds(kinds: Sequence[tuple[str, int]], where: str = "the store") -> None:
    """Say what failed in all, the most frequent first."""
    for reason, images in kinds[:GROUPS]:
        say_error(f"{images} image{'' if images == 1 else 's'}: {reason}")
    if len(kinds) > GROUPS:
        say_error(f"and {len(kinds) - GROUPS} other reasons: {where} holds each image's")


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """End in good order on SIGTERM too; what is finished is on the disk already."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        say_error("ended by SIGTERM; the same command goes on from here")
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
