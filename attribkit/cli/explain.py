"""``attribkit explain``: why did the model call these photographs what it did?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from attribkit.cli._group import COMMAND_LINE
from attribkit.cli.options import METHODS, method_names, method_options

if TYPE_CHECKING:
    from attribkit.cli._job import Job

DEFAULT_OUT = "attribkit-report"


@click.command(
    epilog="The answer lies in the output folder: report.html (open it in a browser), one NAME.METHOD.png and one "
    "NAME.METHOD.safetensors for each image and method, and summary.json. More than 4 images also go into a store "
    "there, more than 50 into it alone (attribkit report shows them): stopped at any moment, the same command goes on, "
    "and torchrun shares the work among processes."
)
@click.argument("images", nargs=-1, required=True, metavar="IMAGE|DIR|GLOB|LIST.txt|TAR...")
@click.option("--model", metavar="M", help="timm/NAME, torchvision/NAME, zfnet, run/DIR or MODULE:FACTORY.")
@click.option(
    "--weights",
    metavar="FILE",
    help="A checkpoint (safetensors, or what torch.load reads safely).",
)
@click.option("--labels", metavar="FILE", help="Names of the classes, one a line, the first for class 0.")
@click.option(
    "--method",
    "methods",
    multiple=True,
    callback=method_names,
    metavar="M",
    help=f"A method; may be repeated, or several joined by commas; all: every method.  [default: {', '.join(METHODS)}]",
)
@click.option(
    "--target", default="auto", show_default=True, metavar="CLASS|auto", help="A class to explain: its index or name."
)
@click.option("--layer", metavar="L", help="Explain a unit of this layer instead of a class.")
@click.option("--channel", type=click.IntRange(min=0), metavar="C", help="The unit's channel.")
@click.option(
    "--option",
    "options",
    multiple=True,
    callback=method_options,
    metavar="METHOD.OPTION=VALUE",
    help="An option of a method, such as occlusion.stride=8; may be repeated.",
)
@click.option("--out", default=DEFAULT_OUT, show_default=True, metavar="DIR", help="The folder to write into.")
@click.option("--device", metavar="D", help="Such as cpu or cuda:0.  [default: cuda where there is one, else cpu]")
@click.option("--store", is_flag=True, help="Write the store for few images too.")
@click.option("--batch-size", type=click.IntRange(min=1), metavar="N", help="Images at once.  [default: by the memory]")
@click.option("--workers", type=click.IntRange(min=0), metavar="N", help="Processes that load images of a store.")
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="Threads of torch's operations.")
@click.option("--half", is_flag=True, help="Keep the store's maps as float16.")
@click.option("--shrink", default=1, show_default=True, type=click.IntRange(min=1), metavar="N",
              help="Average the store's maps over N×N pixels.")  # fmt: skip
@click.option("--retry", is_flag=True, help="Do the batches of a store again in which something failed.")
@click.pass_context
def explain(
    ctx: click.Context,
    /,
    images: tuple[str, ...],
    target: str,
    layer: str | None,
    channel: int | None,
    out: str,
    **options: Any,
) -> None:
    """Explain photographs: why does the model call them what it does?

    A folder is searched for images with all its sub-folders; a list names one path a line. The most probable class is
    explained unless --target names another one, or --layer and --channel a unit inside the network.
    """
    if (layer is None) != (channel is None):
        raise click.UsageError("--layer and --channel belong together: give both, or neither", ctx)
    if layer is not None and target.casefold() != "auto":
        raise click.UsageError("--target names a class and --layer a unit: give one of them", ctx)
    for name, value in (("--model", options["model"]), ("--target", target), ("--layer", layer), ("--out", out)):
        if value is not None and not value.strip():
            raise click.UsageError(f"{name} is empty", ctx)
    from attribkit.cli._job import Job

    finish(
        ctx,
        Job(
            paths=images,
            out=Path(out),
            target=target,
            layer=layer,
            channel=channel,
            command=ctx.find_root().meta[COMMAND_LINE],
            **options,
        ),
    )


def finish(ctx: click.Context, job: Job) -> None:
    """Do a job, say where the page is, and exit with 1 when something failed."""
    from attribkit.cli._job import run

    outcome = run(job)
    where = outcome.page or outcome.store
    if where is not None and outcome.speaks:
        images = f"{outcome.explained} image{'' if outcome.explained == 1 else 's'} explained"
        failed = f", {outcome.failed} with errors" if outcome.failed else ""
        more = f" (attribkit report {where} draws them)" if outcome.page is None else ""
        click.echo(f"{images}{failed}: {where}{more}")
    # of several processes the first one alone says that images failed: torchrun ends all when one exits with 1
    if outcome.speaks and (outcome.failed or where is None):
        ctx.exit(1)
