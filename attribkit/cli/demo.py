"""``attribkit demo``: the first thing to try."""

from __future__ import annotations

from pathlib import Path

import click

from attribkit.cli._group import COMMAND_LINE
from attribkit.cli.explain import DEFAULT_OUT, finish
from attribkit.cli.options import METHODS

SAMPLE = "The sample photograph: “Chelsea the cat” by Stéfan van der Walt (CC0)"


@click.command()
@click.option("--out", default=DEFAULT_OUT, show_default=True, metavar="DIR", help="The folder to write into.")
@click.option("--device", metavar="D", help="Such as cpu or cuda:0.  [default: cuda where there is one, else cpu]")
@click.pass_context
def demo(ctx: click.Context, out: str, device: str | None) -> None:
    """Explain the sample photograph, a cat, with the default model."""
    from attribkit.cli._job import Job
    from attribkit.images import sample_image_path

    if not out.strip():
        raise click.UsageError("--out is empty", ctx)
    finish(
        ctx,
        Job(
            paths=(str(sample_image_path()),),
            out=Path(out),
            methods=METHODS,
            command=ctx.find_root().meta[COMMAND_LINE],
            device=device,
            caption=SAMPLE,
        ),
    )
