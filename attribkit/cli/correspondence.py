"""``attribkit correspondence``: the same part masked in several images (paper Table 1)."""

from __future__ import annotations

from typing import Any

import click

from attribkit.cli._paper import data_options, model_options, open_session, progress_shown, stacked, write


@click.command()
@data_options(required=True, help="Images: a folder, fashion-mnist, fashion-sample or torchvision/NAME:ROOT.")
@click.option("--boxes", required=True, metavar="FILE", help='JSON: {"IMAGE": {"PART": [top, left, bottom, right]}}.')
@click.option(
    "--layer",
    "layers",
    multiple=True,
    metavar="L",
    help="May be repeated.  [default: top maps, last linear layer]",
)
@click.option(
    "--trials",
    default=20,
    show_default=True,
    type=click.IntRange(min=0),
    metavar="N",
    help="Random masks a size.",
)
@click.option("--seed", default=0, show_default=True, metavar="N", help="Of the random masks.")
@click.option("--fill", default=0.0, show_default=True, metavar="V", help="A mask's value after normalisation.")
@model_options("attribkit-correspondence")
def correspondence(
    data: str,
    split: str | None,
    limit: int | None,
    boxes: str,
    layers: tuple[str, ...],
    trials: int,
    seed: int,
    fill: float,
    out: str,
    **options: Any,
) -> None:
    """Measure whether masking the same part changes different images' features in the same way.

    The boxes are in each image's own pixels and half-open; images are named by their ids in the data (paths within the
    folder), and all need the same parts.
    """
    from attribkit.datasets import open_images
    from attribkit.features import box_in_input, correspondence, read_boxes

    source = open_images(data, split)
    parts = read_boxes(boxes, source.ids)
    if limit is not None:
        parts = dict(list(parts.items())[:limit])
    index = {name: row for row, name in enumerate(source.ids)}
    rows = [index[name] for name in parts]
    session = open_session(options)
    preprocess = session.loaded.preprocess
    names = list(next(iter(parts.values())))
    placed = {
        part: [
            box_in_input(preprocess, source.load(index[image]).size, parts[image][part], f"{image}, {part}")
            for image in parts
        ]
        for part in names
    }
    with progress_shown():
        found = correspondence(
            session.model,
            stacked(session, source, rows),
            placed,
            layers=layers or None,
            trials=trials,
            seed=seed,
            fill=fill,
            ids=list(parts),
        )
    lines = [
        f"{row['layer']:<12} {row['part']:<14} {row['masks']:<7} {row['mean']:.3f}"
        + (f" ± {row['standard_error']:.3f}" if row["standard_error"] is not None else "")
        for row in found.summary()
    ]
    write(out, {"correspondence": (found, found.plot(session.loaded.denormalize))}, lines)
