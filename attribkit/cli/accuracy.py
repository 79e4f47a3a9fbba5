"""``attribkit accuracy``: how often a model is wrong."""

from __future__ import annotations

import sys

import click


@click.command("accuracy")
@click.option(
    "--model", required=True, metavar="M", help="As for explain: zfnet-fashion, timm/NAME, run/DIR, MODULE:FACTORY, …"
)
@click.option("--weights", metavar="FILE", help="A checkpoint, as for explain.")
@click.option("--data", required=True, metavar="DATA", help="Labelled images, as for train: a folder, fashion-mnist, …")
@click.option("--split", metavar="PART", help="train, val or test.  [default: test, else val]")
@click.option("--crops", type=click.Choice(["1", "10"]), default="1", show_default=True, help="The preprocessing's own "
              "crop, or corners and centre, flipped too, averaged.")  # fmt: skip
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Look at the first N images only.")
@click.option("--batch-size", type=click.IntRange(1), default=128, show_default=True)
@click.option("--device", metavar="D", help="Such as cpu or cuda:0.  [default: cuda where there is one, else cpu]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def accuracy(
    model: str,
    weights: str | None,
    data: str,
    split: str | None,
    crops: str,
    limit: int | None,
    batch_size: int,
    device: str | None,
    as_json: bool,
) -> None:
    """Measure a model's top-1 and top-5 error on labelled images, with its own preprocessing.

    Where the model's classes and the data's have names, classes of one name are the same; the data may lack some. Else
    both need as many classes, and are matched by their order.
    """
    import dataclasses
    import json

    from attribkit.cli._group import say_warning
    from attribkit.cli._session import RANDOM, usable_device
    from attribkit.datasets import open_images
    from attribkit.models.loading import load_model
    from attribkit.progress import shown
    from attribkit.training import accuracy as measure

    chosen = usable_device(device)
    source = open_images(data, split)
    loaded = load_model(model, weights=weights)
    if loaded.weights == RANDOM:
        say_warning(f"{loaded.name} has random weights: give --weights FILE")
    with shown(sys.stderr.isatty()):
        found = measure(loaded, source, crops=int(crops), batch_size=batch_size, device=chosen, limit=limit)
    if as_json:
        click.echo(json.dumps({"model": model, "data": source.name, "crops": int(crops), **dataclasses.asdict(found)}))
        return
    click.echo(f"{model} on {source.name}, {found.images} images, {crops} crop{'s' * (crops != '1')}")
    click.echo(f"top-1 error {found.top1:.2%}, top-5 error {found.top5:.2%}, cross-entropy {found.loss:.4f}")
