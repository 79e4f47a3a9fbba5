"""``attribkit invariance``: features and class under shifting, scaling and turning (paper Fig. 5)."""

from __future__ import annotations

from typing import Any

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

    The true class is the data's where its classes are the model's, else the model's own answer.
    """
    from attribkit.datasets import open_images
    from attribkit.features import invariance
    from attribkit.models.building import count_classes

    value: float | str = fill
    if fill != "edge":
        try:
            value = float(fill)
        except ValueError:
            raise click.BadParameter(f"{fill!r} is neither edge nor a number", param_hint="--fill") from None
    source = open_images(data, split)
    rows = chosen(source, images, min(limit or 5, 5))
    session = open_session(options)
    matching = source.labels is not None and len(source.labels) == count_classes(session.model)
    classes = source.classes()[rows].tolist() if matching else None
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
    whose = "the data's" if matching else "the model's answers"
    say = [f"{len(rows)} images at {', '.join(found.layers)}; their classes are {whose}"]
    write(out, {"invariance": (found, found.plot(session.loaded.denormalize))}, say)
