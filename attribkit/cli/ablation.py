"""``attribkit ablation``: which part of ZFNet matters."""

from __future__ import annotations

import sys
from typing import Any

import click

from attribkit.cli.train import pairs


@click.command("ablation")
@click.option("--data", required=True, metavar="DATA", help="Labelled images, as for train.")
@click.option("--out", required=True, metavar="DIR", help="A run a variant, a table (CSV) and a chart.")
@click.option(
    "--variant",
    "variants",
    multiple=True,
    metavar="V",
    help="full, no-3-4, no-7, no-6-7, no-3-4-6-7, fc-2048, fc-8192, maps-512-1024-512, maps-512-1024-512-fc-8192; "
    "repeatable.  [default: all]",
)
@click.option("--model-option", "options", multiple=True, metavar="K=V", callback=pairs, help="For ZFNet.")
@click.option("--width", type=float, help="Multiplies maps and hidden units.")
@click.option("--epochs", default=70, show_default=True)
@click.option("--batch-size", default=128, show_default=True)
@click.option("--lr", default=0.01, show_default=True)
@click.option("--patience", default=3, show_default=True)
@click.option("--anneal", default=0.1, show_default=True)
@click.option("--size", default=224, show_default=True)
@click.option("--resize", default=256, show_default=True)
@click.option("--init", type=click.Choice(["paper", "scaled", "he"]), default="paper", show_default=True)
@click.option("--val-fraction", default=0.1, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--device", metavar="D", help="Such as cpu or cuda:0.  [default: cuda where there is one, else cpu]")
@click.option("--threads", type=click.IntRange(1), metavar="N", help="Threads of torch's operations.")
@click.pass_context
def ablation(
    context: click.Context,
    /,
    data: str,
    out: str,
    variants: tuple[str, ...],
    options: dict[str, Any],
    width: float | None,
    device: str | None,
    threads: int | None,
    **recipe: Any,
) -> None:
    """Train ZFNet with layers removed or resized and compare the errors (paper, Table 3).

    The options are those of `attribkit train`. The same command goes on with a comparison that was stopped.
    """
    import torch

    from attribkit.cli._group import COMMAND_LINE
    from attribkit.cli._session import usable_device
    from attribkit.progress import shown
    from attribkit.training import Machine, Recipe
    from attribkit.training import ablation as run
    from attribkit.training.memory import keep_freed_memory

    keep_freed_memory()
    if threads is not None:
        torch.set_num_threads(threads)
    if width is not None:
        options = {**options, "width": width}
    machine = Machine(device=usable_device(device) if device is not None else None)
    with shown(sys.stderr.isatty()):
        rows = run(
            data,
            out,
            Recipe(model_options=options, **recipe),
            variants=variants or None,
            machine=machine,
            say=lambda line: click.echo(line),
            command=str(context.meta.get(COMMAND_LINE, "")),
        )
    wide = max(len("variant"), *(len(row.variant) for row in rows))
    click.echo(f"{'variant':<{wide}}  parameters  training error  validation error  test error")
    for row in rows:
        test = "" if row.test_error is None else f"{row.test_error:.2%}"
        errors = f"{row.train_error:>14.2%}  {row.val_error:>16.2%}  {test:>10}"
        click.echo(f"{row.variant:<{wide}}  {row.parameters:>10,}  {errors}")
