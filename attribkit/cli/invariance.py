"""``attribkit invariance``: features and class under shifting, scaling and turning (paper Fig. 5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from attribkit.cli._paper import (
    chosen,
    data_options,
    model_options,
    numbers,
    open_session,
    progress_shown,
    sized,
    stacked,
    write,
)

if TYPE_CHECKING:
    from attribkit.cli._session import Session
    from attribkit.datasets import ImageSource


@click.command()
@data_options(required=True, help="Images: a folder, fashion-mnist, fashion-sample or torchvision/NAME:ROOT.")
@click.option(
    "--image",
    "images",
    multiple=True,
    metavar="ID",
    help="Its id or number; may be repeated.  [default: first 5]",
)
@click.option(
    "--layer",
    "layers",
    multiple=True,
    metavar="L",
    help="May be repeated.  [default: the first and the top layer]",
)
@click.option("--translations", callback=numbers, metavar="N,N,…", help="Pixels down, or START:STOP:COUNT.")
@click.option("--scales", callback=numbers, metavar="N,N,…", help="Factors, or START:STOP:COUNT.")
@click.option("--rotations", callback=numbers, metavar="N,N,…", help="Degrees, or START:STOP:COUNT.")
@click.option(
    "--fill",
    default="edge",
    show_default=True,
    metavar="edge|V",
    help="From outside: the border, or a normalised value.",
)
@model_options("attribkit-invariance")
def invariance(
    data: str,
    split: str | None,
    limit: int | None,
    images: tuple[str, ...],
    layers: tuple[str, ...],
    translations: tuple[float, ...] | None,
    scales: tuple[float, ...] | None,
    rotations: tuple[float, ...] | None,
    fill: str,
    out: str,
    **options: Any,
) -> None:
    """Measure how features and class respond to moving, scaling and turning the image.

    The true class is the data's where its classes are the model's: by name where both have names, else by order where
    they are as many. Where they are not, it is the model's own answer.
    """
    from attribkit.datasets import open_images
    from attribkit.features import invariance

    value: float | str = fill
    if fill != "edge":
        try:
            value = float(fill)
        except ValueError:
            raise click.BadParameter(f"{fill!r} is neither edge nor a number", param_hint="--fill") from None
    source = open_images(data, split)
    rows = chosen(source, images, min(limit or 5, 5))
    session = open_session(options)
    classes = _true_classes(session, source, rows)
    with progress_shown():
        found = invariance(
            session.model,
            stacked(session, source, rows),
            classes,
            layers=layers or None,
            translations=translations,
            scales=scales,
            rotations=rotations,
            fill=value,
            ids=[source.ids[row] for row in rows],
            labels=sized(session, source),
        )
    whose = "the data's" if classes is not None else "the model's answers"
    say = [f"{len(rows)} images at {', '.join(found.layers)}; their classes are {whose}"]
    write(out, {"invariance": (found, found.plot(session.loaded.denormalize))}, say)


def _true_classes(session: Session, source: ImageSource, rows: Sequence[int]) -> list[int] | None:
    """Return the model's classes that images are of; None where the data's are others altogether, or none.

    Raises
    ------
    UnknownNameError
        If some of the data's classes are the model's, but that of one of the images is not.
    InputError
        If a class may be several of the model's.
    """
    from attribkit.models.building import count_classes
    from attribkit.training.naming import are_names, class_numbers, matched

    if source.labels is None:
        return None
    labels, count = session.labels, count_classes(session.model)
    if labels is not None and count is not None and len(labels) != count:
        labels = None  # as `class_numbers` takes them
    named = labels is not None and are_names(labels) == are_names(source.labels)
    if named and labels is not None:
        if not any(place is not None for place in matched(source.labels, labels)):
            return None
    elif len(source.labels) != count:
        return None
    wanted = source.classes()[list(rows)]
    name = session.loaded.name
    known = class_numbers(source.labels, labels, count, wanted, data=source.name, model=name)
    return [int(number) for number in known[wanted]]
