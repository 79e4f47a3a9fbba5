"""What the commands of the paper's analyses share: their options, the images they take, the files they write."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from attribkit.errors import ImageError, InputError

if TYPE_CHECKING:
    import torch

    from attribkit.cli._session import Session
    from attribkit.datasets import ImageSource
    from attribkit.features import Inputs

__all__ = [
    "chosen",
    "data_options",
    "model_options",
    "numbers",
    "open_session",
    "progress_shown",
    "sized",
    "source_inputs",
    "stacked",
    "write",
]

Command = TypeVar("Command", bound=Callable[..., Any])


def model_options(out: str) -> Callable[[Command], Command]:
    """Return a decorator that adds ``--model``, ``--weights``, ``--device`` and ``--out``, its default ``out``.

    The command begins only where the folder can be written into.
    """

    def add(body: Command) -> Command:
        @functools.wraps(body)
        def checked(*args: Any, out: str, **given: Any) -> Any:
            from attribkit.cli._output import check_output

            check_output(out)
            return body(*args, out=out, **given)

        command: Any = checked
        for option in (
            click.option("--out", default=out, show_default=True, metavar="DIR", help="The folder to write into."),
            click.option(
                "--device", metavar="D", help="Such as cpu or cuda:0.  [default: cuda where there is one, else cpu]"
            ),
            click.option("--weights", metavar="FILE", help="A checkpoint, as for explain."),
            click.option(
                "--model",
                metavar="M",
                help="As for explain: timm/NAME, torchvision/NAME, zfnet, run/DIR or MODULE:FACTORY.",
            ),
        ):
            command = option(command)
        return cast(Command, command)

    return add


def data_options(*, required: bool, help: str) -> Callable[[Command], Command]:
    """Return a decorator that adds ``--data``, ``--split`` and ``--limit``."""

    def add(command: Command) -> Command:
        for option in (
            click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Take the first N images only."),
            click.option("--split", metavar="PART", help="The part of the data: train, val or test."),
            click.option("--data", required=required, metavar="DATA", help=help),
        ):
            command = option(command)
        return command

    return add


def numbers(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    """Turn ``-10,0,10`` or ``START:STOP:COUNT`` (both ends included) into numbers; None stays None."""
    if value is None:
        return None
    try:
        if ":" in value:
            start, stop, count = value.split(":")
            steps = int(count)
            if steps < 2:
                raise ValueError
            return tuple(float(start) + (float(stop) - float(start)) * i / (steps - 1) for i in range(steps))
        return tuple(float(part) for part in value.split(",") if part.strip())
    except ValueError:
        raise click.BadParameter(f"{value!r} is not of the form N,N,… or START:STOP:COUNT", ctx, param) from None


def open_session(options: dict[str, Any]) -> Session:
    """Load the model that the options name."""
    from attribkit.cli._session import Session

    return Session(options["model"], options["weights"], device=options["device"])


def source_inputs(session: Session, data: str, split: str | None, limit: int | None) -> Inputs:
    """Open the data as inputs of the session's model."""
    from attribkit.features import Inputs

    return Inputs(data, session.loaded.preprocess, limit=limit, split=split, device=session.device)


def chosen(source: ImageSource, names: Sequence[str], default: int) -> list[int]:
    """Return the images that names (ids, or positions) mean; without names the first few.

    Raises
    ------
    InputError
        No image is called so.
    """
    from attribkit.errors import UnknownNameError, did_you_mean

    if not names:
        return list(range(min(default, len(source))))
    found = []
    for name in names:
        if name in source.ids:
            found.append(list(source.ids).index(name))
        elif name.isdecimal() and int(name) < len(source):
            found.append(int(name))
        else:
            raise UnknownNameError(f"image {name!r} is not in {source.name}: {did_you_mean(name, source.ids)}")
    return found


def stacked(session: Session, source: ImageSource, rows: Sequence[int]) -> torch.Tensor:
    """Return some images of a source as inputs [N, C, H, W]."""
    import torch

    pictures = []
    for row in rows:
        try:
            pictures.append(session.loaded.preprocess(source.load(row)))
        except ImageError as error:
            raise InputError(f"{source.ids[row]}: {error}") from error
    return torch.stack(pictures).to(session.device)


def sized(session: Session, source: ImageSource) -> tuple[str, ...] | None:
    """Return the class names: the model's own, else the source's where they are as many as its classes."""
    from attribkit.models.building import count_classes

    count = count_classes(session.model)
    for labels in (session.labels, source.labels):
        if labels is not None and (len(labels) == count or (count is None and labels is session.labels)):
            return tuple(labels)
    return None


def progress_shown() -> Any:
    """Return a context that shows progress bars where stderr is a terminal."""
    from attribkit.progress import shown

    return shown(sys.stderr.isatty())


def write(out: str, results: dict[str, tuple[Any, Any]], say: Sequence[str] = ()) -> None:
    """Write ``NAME.csv`` and ``NAME.png`` for each result into a folder, all of it or nothing, and say so.

    Parameters
    ----------
    out
        The folder.
    results
        By name, what an analysis returned and its figure.
    say
        Lines to print before the paths.
    """
    from attribkit.cli._output import OutputFolder
    from attribkit.features._tables import figure_png

    with OutputFolder(out) as folder:
        for name, (data, figure) in results.items():
            with folder.writing(f"{name}.csv") as path:
                data.to_csv(path)
            with folder.writing(f"{name}.png") as path:
                figure_png(figure, path)
        folder.commit()
    for line in say:
        click.echo(line)
    for name in results:
        click.echo(f"written: {Path(out) / name}.png, {name}.csv")
