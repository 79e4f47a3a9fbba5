"""``attribkit report``: pictures and a page of what a store holds."""

from __future__ import annotations

import click

from attribkit.cli._group import COMMAND_LINE, printable, say_error, say_warning


@click.command()
@click.argument("store", metavar="STORE")
@click.option("--image", "patterns", multiple=True, metavar="NAME", help="An image, or a pattern like '*cat*'; may be "
              "repeated.  [default: all]")  # fmt: skip
@click.option("--limit", default=50, show_default=True, type=click.IntRange(min=1), metavar="N", help="The first N.")
@click.option("--failed", is_flag=True, help="Only images of which something failed.")
@click.option("--maps", is_flag=True, help="Write each map as a .safetensors file of its own too.")
@click.option("--model", metavar="M", help="The model.  [default: the store's]")
@click.option("--weights", metavar="FILE", help="Its weights.  [default: the store's]")
@click.option("--labels", metavar="FILE", help="Names of the classes, one a line, the first for class 0.")
@click.option("--out", metavar="DIR", help="The folder to write into.  [default: the store]")
@click.option("--device", metavar="D", help="Such as cpu or cuda:0.  [default: cuda where there is one, else cpu]")
@click.pass_context
def report(
    ctx: click.Context,
    store: str,
    patterns: tuple[str, ...],
    limit: int,
    failed: bool,
    maps: bool,
    model: str | None,
    weights: str | None,
    labels: str | None,
    out: str | None,
    device: str | None,
) -> None:
    """Draw what explain has put into a store: the page, and an overlay for each image and method.

    The maps come from the store, while a run goes on too. The images are read again, and the model is asked for the
    most probable classes.
    """
    from fnmatch import fnmatchcase
    from pathlib import Path

    from attribkit.attribution import weights_hash
    from attribkit.cli._job import Job
    from attribkit.cli._output import check_output
    from attribkit.cli._session import Session
    from attribkit.cli._stored import write_page
    from attribkit.plugins import manager
    from attribkit.store.errors import StoreError
    from attribkit.store.reader import open_store

    opened = open_store(store)
    for method in opened.methods:
        manager().method(method)  # it must be installed: its name becomes part of file names
    bad = {record.position for record in opened.failures()}
    positions = [
        position
        for position, name in opened.names()
        if (not patterns or any(name == pattern or fnmatchcase(name, pattern) for pattern in patterns))
        and (not failed or position in bad)
    ]
    if not positions:
        what = f"no image fits {' or '.join(map(repr, patterns))}" if patterns else "there is no such image"
        raise StoreError(f"{store!r}: {what}, of {opened.images}")
    folder = Path(out if out is not None else store)
    check_output(folder)
    spec, file = _model_of(opened.about, opened.note("weights file"), model, weights)
    session = Session(spec, file, labels, device)
    if labels is None and session.labels is None:
        noted = opened.note("labels")
        session.labels = [str(label) for label in noted] if isinstance(noted, list) else None
    if weights_hash(session.model) != opened.about.get("weights_sha256"):
        raise StoreError(
            f"{store!r} was made with other weights than {session.loaded.name} has here ({session.loaded.weights}):"
            " give those with --weights (and --model)"
        )
    job = Job((), folder, opened.methods, ctx.find_root().meta[COMMAND_LINE], device=device)
    if len(positions) > limit:
        say_warning(f"the first {limit} of {len(positions)} images: --limit takes more, --image others")
    drawn = write_page(job, opened, session, positions[:limit], folder, maps)
    if drawn.page is None:
        raise StoreError(f"{printable(store)!r}: not one of these images has a map")
    before = len(bad.intersection(positions[:limit]))
    if before:
        say_error(f"{before} image{'' if before == 1 else 's'} failed when explained: the page has the reasons")
    images = f"{drawn.explained} image{'' if drawn.explained == 1 else 's'} drawn"
    click.echo(f"{images}{f', {drawn.failed} with errors' if drawn.failed else ''}: {drawn.page}")
    if drawn.failed:
        ctx.exit(1)


def _model_of(
    about: dict[str, object], noted: object, model: str | None, weights: str | None
) -> tuple[str, str | None]:
    """Return which model to load; one that a store names is loaded only where that runs no code of its own."""
    from attribkit.store.errors import StoreError

    if model is not None:
        return model, weights
    named = about.get("model")
    known = isinstance(named, str) and (
        named.startswith(("timm/", "torchvision/")) or named in ("zfnet", "zfnet-fashion")
    )
    if not isinstance(named, str) or not known or ":" in named:
        raise StoreError(f"the store is of the model {str(named)!r:.80}: loading it may run code; name it with --model")
    return named, weights if weights is not None else noted if isinstance(noted, str) else None
