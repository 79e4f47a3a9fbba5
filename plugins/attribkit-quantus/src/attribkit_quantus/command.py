"""``attribkit evaluate``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from attribkit.cli.options import METHODS, method_names, method_options, names

if TYPE_CHECKING:
    import torch

    from attribkit_quantus.results import Evaluation

PARTS = ("faithfulness", "randomisation", "grid_pointing_game", "sensitivity", "complexity", "runtime")


def _parts(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of measures, all known ones for none."""
    found = names(ctx, param, values)
    for name in found:
        if name not in PARTS:
            raise click.BadParameter(f"{name!r} is not one of {', '.join(PARTS)}", ctx, param)
    return found or PARTS


@click.command(
    epilog="The answer lies in the output folder: report.html (open it in a browser), evaluation.csv with a row for"
    " each method and measure, images.csv with a row for each image too, and randomisation.csv with one for each depth."
)
@click.option(
    "--model", required=True, metavar="M", help="As for explain: zfnet-fashion, timm/NAME, run/DIR, MODULE:FACTORY, …"
)
@click.option("--weights", metavar="FILE", help="A checkpoint, as for explain.")
@click.option(
    "--data",
    required=True,
    metavar="DATA",
    help="A folder of images (classes in sub-folders, if any) or of idx files; fashion-mnist; torchvision/NAME:ROOT.",
)
@click.option("--split", metavar="PART", help="The part of the data: train, val or test.")
@click.option(
    "--method",
    "methods",
    multiple=True,
    callback=method_names,
    metavar="M",
    help=f"A method; may be repeated, or several joined by commas.  [default: {', '.join(METHODS)}]",
)
@click.option(
    "--measure",
    "parts",
    multiple=True,
    callback=_parts,
    metavar="NAME",
    help=f"What to measure; may be repeated.  [default: {', '.join(PARTS)}]",
)
@click.option("--images", type=click.IntRange(1), default=200, show_default=True, help="How many, drawn at random.")
@click.option(
    "--subset",
    type=click.IntRange(1),
    default=50,
    show_default=True,
    help="How many of them for randomisation and sensitivity, which take many maps of each.",
)
@click.option("--grid", type=click.IntRange(2, 8), default=2, show_default=True, help="Images a side of a grid.")
@click.option(
    "--confidence",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.9,
    show_default=True,
    help="The least probability of its class with which an image enters a grid.",
)
@click.option(
    "--reading",
    type=click.Choice(["absolute", "signed"]),
    default="absolute",
    show_default=True,
    help="What makes a pixel strong for deletion, insertion and pixel flipping.",
)
@click.option("--steps", type=click.IntRange(1), default=20, show_default=True, help="Steps of these three.")
@click.option(
    "--flips", type=click.IntRange(1), default=100, show_default=True, help="Patches that are flipped in all."
)
@click.option("--repeats", type=click.IntRange(1), default=10, show_default=True, help="Noisy images for sensitivity.")
@click.option(
    "--radius",
    type=click.FloatRange(0, min_open=True),
    default=0.02,
    show_default=True,
    help="Their noise, as a share of the image's range.",
)
@click.option(
    "--depths", type=click.IntRange(1), default=10, show_default=True, help="The most depths of randomised networks."
)
@click.option(
    "--option",
    "options",
    multiple=True,
    callback=method_options,
    metavar="METHOD.OPTION=VALUE",
    help="An option of a method, such as occlusion.stride=8; may be repeated.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of everything random.")
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True)
@click.option("--device", metavar="D", help="Such as cpu or cuda:0.  [default: cuda where there is one, else cpu]")
@click.option(
    "--out", default="attribkit-evaluation", show_default=True, metavar="DIR", help="The folder to write into."
)
@click.pass_context
def evaluate(
    ctx: click.Context,
    /,
    model: str,
    weights: str | None,
    data: str,
    split: str | None,
    methods: tuple[str, ...],
    options: dict[str, dict[str, Any]],
    device: str | None,
    out: str,
    **numbers: Any,
) -> None:
    """Measure how good attribution methods are: on a model, over images, with confidence intervals.

    Faithfulness (deletion, insertion, pixel flipping), model-parameter randomisation, the grid pointing game,
    sensitivity to noise, complexity and runtime. Each image is explained for the class that the model gives it.
    """
    for name, value in (("--model", model), ("--data", data), ("--out", out)):
        if not value.strip():
            raise click.UsageError(f"{name} is empty", ctx)
    import sys
    from pathlib import Path

    import attribkit as ak
    from attribkit.datasets import open_images
    from attribkit.progress import shown
    from attribkit_quantus.evaluation import check_methods
    from attribkit_quantus.evaluation import evaluate as run
    from attribkit_quantus.output import opened
    from attribkit_quantus.settings import Settings
    from attribkit_quantus.verdict import verdict

    settings = Settings(**numbers)
    check_methods(methods, options)
    source = open_images(data, split)
    place = _device(device)
    loaded = ak.load_model(model, weights=weights)
    if loaded.weights == "random":
        click.echo(f"attribkit: warning: {loaded.name} has random weights: give --weights FILE", err=True)
    _move(loaded.model, place)

    def failed(method: str, error: Exception) -> None:
        print(f"attribkit: error: {method}: {' '.join(str(error).split())}", file=sys.stderr, flush=True)

    with opened(Path(out)) as folder:
        with shown(sys.stderr.isatty()):
            found = run(loaded, source, methods, settings, options, failed)
        if found.methods:
            _describe(found, place, loaded.weights)
            folder.write(_files(found, _command_line(ctx)))
    for line in found.skipped[:10]:
        click.echo(f"attribkit: warning: left out: {' '.join(line.split())}", err=True)
    if len(found.skipped) > 10:
        click.echo(f"attribkit: warning: left out: {len(found.skipped) - 10} more images", err=True)
    if found.methods:
        _print(found, verdict(found))
        click.echo(f"written: {Path(out) / 'report.html'}, evaluation.csv, images.csv, randomisation.csv")
    if found.failures:
        ctx.exit(1)


def _files(found: Evaluation, command: str) -> dict[str, bytes]:
    from attribkit_quantus.page import page

    texts = {
        "report.html": page(found, command),
        "evaluation.csv": found.table_csv(),
        "images.csv": found.images_csv(),
        "randomisation.csv": found.randomisation_csv(),
    }
    return {name: text.encode("utf-8", "replace") for name, text in texts.items()}


def _print(found: Evaluation, sentences: list[str]) -> None:
    from rich.console import Console

    from attribkit_quantus.tables import terminal

    console = Console()
    if not console.is_terminal:
        console.width = 200  # a pipe or a file: lines are not to be broken
    console.print(terminal(found), highlight=False)
    for line in (*sentences, *found.notes):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _describe(found: Evaluation, place: torch.device, weights: str | None) -> None:
    """Add what the numbers depend on to the facts."""
    import platform

    import torch

    import attribkit

    found.facts["weights"] = str(weights)
    found.facts["device"] = str(place) if place.type != "cpu" else f"cpu, {torch.get_num_threads()} thread(s)"
    found.facts["versions"] = (
        f"attribkit {attribkit.__version__}, torch {torch.__version__}, Python {platform.python_version()}"
    )


def _device(name: str | None) -> torch.device:
    import torch

    from attribkit.errors import InputError

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(name)
    except RuntimeError:
        raise InputError(f"device {name!r} is not known: use cpu, cuda, cuda:0, mps, …") from None


def _move(model: torch.nn.Module, place: torch.device) -> None:
    from attribkit.errors import InputError

    try:
        model.to(place)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"device {str(place)!r} cannot hold the model: {reason}") from error


def _command_line(ctx: click.Context) -> str:
    """Return the command with the options that were given."""
    import shlex

    words = ["attribkit", "evaluate"]
    for param in ctx.command.params:
        if param.name is None or ctx.get_parameter_source(param.name) != click.core.ParameterSource.COMMANDLINE:
            continue
        value = ctx.params[param.name]
        if param.name == "options":
            texts = [f"{method}.{option}={v!r}" for method, given in value.items() for option, v in given.items()]
        else:
            texts = [",".join(value) if isinstance(value, tuple) else str(value)]
        for text in texts:
            words += [param.opts[0], text]
    return shlex.join(words)
