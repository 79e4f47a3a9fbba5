"""``attribkit train``: the paper's recipe, on images of one's own."""

from __future__ import annotations

import sys
from typing import Any

import click


def pairs(context: click.Context, parameter: click.Parameter, given: tuple[str, ...]) -> dict[str, Any]:
    """Return ``k=v`` options as a dictionary, with numbers and truth values read as such."""
    import ast

    found: dict[str, Any] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key.isidentifier():
            raise click.BadParameter(f"{text!r} is not of the form name=value")
        try:
            found[key] = ast.literal_eval({"true": "True", "false": "False", "none": "None"}.get(value.lower(), value))
        except (ValueError, SyntaxError):
            found[key] = value
    return found


def numbers(context: click.Context, parameter: click.Parameter, given: str | None) -> tuple[int, ...]:
    """Return a list of whole numbers, written with commas."""
    try:
        return tuple(int(part) for part in (given or "").split(",") if part.strip())
    except ValueError:
        raise click.BadParameter(f"{given!r} is not a list of whole numbers such as 1,2,5") from None


@click.command("train")
@click.option("--data", required=True, metavar="DATA", help="A folder of images (a sub-folder a class; train, val and "
              "test are parts), a folder with idx files, fashion-mnist, or torchvision/NAME:ROOT.")  # fmt: skip
@click.option("--out", required=True, metavar="DIR", help="The run's folder; a run that it holds goes on.")
@click.option("--model", default="zfnet", show_default=True, metavar="M", help="zfnet, or any timm name.")
@click.option("--model-option", "options", multiple=True, metavar="K=V", callback=pairs, help="For its constructor.")
@click.option("--width", type=float, help="zfnet: multiplies maps and hidden units.")
@click.option("--epochs", default=70, show_default=True, help="Passes over the training images.")
@click.option("--batch-size", default=128, show_default=True, help="Images a step, over all processes.")
@click.option("--lr", default=0.01, show_default=True, help="Learning rate to start from.")
@click.option("--momentum", default=0.9, show_default=True)
@click.option("--weight-decay", default=0.0, show_default=True)
@click.option(
    "--patience", default=3, show_default=True, help="Epochs without a better validation error before lr falls."
)
@click.option("--anneal", default=0.1, show_default=True, help="What lr is then multiplied by.")
@click.option("--min-delta", default=0.0, show_default=True, help="By how much an error must be lower to be better.")
@click.option("--min-lr", default=1e-6, show_default=True, help="Training ends when lr would fall below.")
@click.option("--size", default=224, show_default=True, help="Pixels of the crops.")
@click.option("--resize", default=256, show_default=True, help="Pixels of the images that they are cut from.")
@click.option("--flip/--no-flip", default=True, show_default=True, help="Random flips left to right.")
@click.option(
    "--init", type=click.Choice(["paper", "scaled", "he", "model"]), help="Initial weights.  [default: paper for zfnet]"
)
@click.option("--mean", type=click.Choice(["channel", "pixel", "model"]), help="What is subtracted.  [default: channel "
              "for zfnet, else the model's own]")  # fmt: skip
@click.option("--max-norm", default=0.1, show_default=True, help="Largest RMS of a convolution's filter; 0: no limit.")
@click.option("--val", metavar="DATA", help="Validation images.  [default: the part val, else a part held out]")
@click.option("--val-fraction", default=0.1, show_default=True, help="The part of each class held out.")
@click.option("--seed", default=0, show_default=True)
@click.option(
    "--snapshots", metavar="N,N,…", callback=numbers, help="Epochs whose weights are kept; 0: before training."
)
@click.option("--test/--no-test", default=True, show_default=True, help="Evaluate on the part test at the end.")
@click.option("--device", metavar="D", help="Such as cpu or cuda:0.  [default: cuda where there is one, else cpu]")
@click.option("--amp", type=click.Choice(["auto", "off", "bf16", "fp16"]), default="auto", show_default=True)
@click.option("--channels-last", type=click.Choice(["auto", "on", "off"]), default="auto", show_default=True)
@click.option("--compile", "compiled", is_flag=True, help="Use torch.compile.")
@click.option("--workers", type=click.IntRange(0), metavar="N", help="Threads that prepare batches.")
@click.option("--threads", type=click.IntRange(1), metavar="N", help="Threads of torch's operations.")
@click.option("--cache", default=2048, show_default=True, help="MiB of resized images kept in memory at most.")
@click.option("--checkpoint-seconds", default=60.0, show_default=True, help="How often the state is written.")
@click.option("--checkpoint-steps", default=1000, show_default=True, help="And after so many steps.")
@click.option("--resume", is_flag=True, help="Fail unless --out holds a run to go on with.")
@click.pass_context
def train(
    context: click.Context,
    /,
    data: str,
    out: str,
    options: dict[str, Any],
    width: float | None,
    val: str | None,
    snapshots: tuple[int, ...],
    test: bool,
    device: str | None,
    amp: str,
    channels_last: str,
    compiled: bool,
    workers: int | None,
    threads: int | None,
    cache: int,
    checkpoint_seconds: float,
    checkpoint_steps: int,
    resume: bool,
    **recipe: Any,
) -> None:
    """Train a network by the recipe of Zeiler & Fergus (§3).

    The same command goes on with a run that was stopped or killed. --out gets the weights, a log (CSV and JSON
    lines), curves and snapshots. Started by torchrun, the processes share each batch.
    """
    import torch

    from attribkit.cli._group import COMMAND_LINE
    from attribkit.cli._session import usable_device
    from attribkit.progress import shown
    from attribkit.training import Machine, Recipe
    from attribkit.training import train as run
    from attribkit.training.memory import keep_freed_memory

    keep_freed_memory()
    if threads is not None:
        torch.set_num_threads(threads)
    chosen = usable_device(device) if device is not None else None
    machine = Machine(
        device=chosen,
        amp=amp,
        channels_last=channels_last != "off",
        compile=compiled,
        workers=workers,
        cache=cache * 2**20,
        checkpoint_seconds=checkpoint_seconds,
        checkpoint_steps=checkpoint_steps,
    )
    if width is not None:
        options = {**options, "width": width}
    asked = Recipe(model_options=options, **recipe)
    command = str(context.meta.get(COMMAND_LINE, ""))
    with shown(sys.stderr.isatty()):
        run(
            data,
            out,
            asked,
            val=val,
            machine=machine,
            snapshots=snapshots,
            test=test,
            resume=resume,
            say=lambda line: click.echo(line),
            command=command,
        )
