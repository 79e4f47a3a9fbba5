"""``attribkit probe``: how well each layer's features serve other images."""

from __future__ import annotations

import sys

import click


def counts(context: click.Context, parameter: click.Parameter, given: str) -> tuple[int | None, ...]:
    """Return numbers of images a class, written with commas; ``all`` is None."""
    try:
        return tuple(None if part.strip() == "all" else int(part) for part in given.split(",") if part.strip())
    except ValueError:
        raise click.BadParameter(f"{given!r} is not a list of whole numbers or all, such as 15,30,all") from None


@click.command("probe")
@click.option(
    "--model", required=True, metavar="M", help="As for explain: zfnet-fashion, timm/NAME, run/DIR, MODULE:FACTORY, …"
)
@click.option("--weights", metavar="FILE", help="A checkpoint, as for explain.")
@click.option("--data", required=True, metavar="DATA", help="Labelled images, as for train. Their parts train and test "
              "are used where there are such; else images are held out of each fold.")  # fmt: skip
@click.option(
    "--layer", "layers", required=True, multiple=True, metavar="L", help="A layer to freeze up to; repeatable."
)
@click.option(
    "--per-class", default="15,30,60,all", show_default=True, callback=counts, help="Training images a class."
)
@click.option("--folds", type=click.IntRange(1), default=5, show_default=True, help="Random draws of them.")
@click.option("--classifier", type=click.Choice(["softmax", "svm"]), default="softmax", show_default=True)
@click.option("--decay", default=1e-3, show_default=True, help="L2 penalty.")
@click.option("--max-features", type=click.IntRange(1), default=10_000, show_default=True, help="Average larger maps.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Test on the first N test images only.")
@click.option("--seed", default=0, show_default=True)
@click.option("--batch-size", type=click.IntRange(1), default=64, show_default=True)
@click.option("--device", metavar="D", help="Such as cpu or cuda:0.  [default: cuda where there is one, else cpu]")
@click.option("--out", metavar="DIR", help="Write probe.csv and probe.png there.")
def probe(
    model: str,
    weights: str | None,
    data: str,
    layers: tuple[str, ...],
    per_class: tuple[int | None, ...],
    folds: int,
    classifier: str,
    decay: float,
    max_features: int,
    limit: int | None,
    seed: int,
    batch_size: int,
    device: str | None,
    out: str | None,
) -> None:
    """Freeze a model up to a layer and fit a new classifier on its features (paper, Tables 4 to 7)."""
    from attribkit.cli._output import check_output
    from attribkit.cli._session import usable_device
    from attribkit.datasets import First, open_images, splits
    from attribkit.models.loading import load_model
    from attribkit.progress import shown
    from attribkit.training import probe as run
    from attribkit.training.generalisation import write_probe

    if out is not None:
        check_output(out)
    chosen = usable_device(device)
    parts = splits(data)
    train = open_images(data, "train" if "train" in parts else None)
    test = open_images(data, next(part for part in ("test", "val") if part in parts)) if len(parts) > 1 else None
    if test is not None and limit is not None:
        test = First(test, limit)
    loaded = load_model(model, weights=weights)
    with shown(sys.stderr.isatty()):
        rows = run(
            loaded,
            train,
            test,
            layers=layers,
            per_class=per_class,
            folds=folds,
            classifier=classifier,
            decay=decay,
            max_features=max_features,
            batch_size=batch_size,
            device=chosen,
            seed=seed,
        )
    if out is not None:
        write_probe(out, rows)
    wide = max(len("layer"), *(len(row.layer) for row in rows))
    click.echo(f"{'layer':<{wide}}  features  images a class  error, %       folds")
    for row in rows:
        count = "all" if row.per_class is None else str(row.per_class)
        error = f"{100 * row.error:.2f} ± {100 * row.std:.2f}"
        click.echo(f"{row.layer:<{wide}}  {row.features:>8}  {count:>14}  {error:<13}  {row.folds:>5}")
