"""The front door: a recipe, images and a folder become a trained network."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from attribkit.datasets import ImageSource
from attribkit.errors import ImageError, InputError
from attribkit.training.division import divide
from attribkit.training.finish import Result, finish, finished, tested
from attribkit.training.interrupts import noticed
from attribkit.training.loop import Run
from attribkit.training.machine import Machine
from attribkit.training.parallel import team
from attribkit.training.recipe import Recipe

__all__ = ["train"]


def train(
    data: str | ImageSource,
    out: str | os.PathLike[str],
    recipe: Recipe | None = None,
    *,
    val: str | ImageSource | None = None,
    machine: Machine | None = None,
    snapshots: Sequence[int] = (),
    test: bool = True,
    resume: bool = False,
    say: Callable[[str], None] | None = None,
    command: str = "",
    network: nn.Module | None = None,
) -> Result:
    """Train a network by the paper's recipe (§3), or go on with the run in ``out``.

    A run that was killed, at whatever moment, goes on from its last state when the same call is made again, and ends
    with the weights it would have had: on a CPU, with as many threads, bit for bit.

    Parameters
    ----------
    data
        The training images, as `attribkit.datasets.open_images` takes them: their part "train" where they have parts.
        Every class needs at least one image, two where validation images are held out of it.
    out
        The folder of the run; it is made.
    recipe
        How to train; None takes the paper's.
    val
        Images to validate with; None takes the part "val" of ``data``, else holds ``recipe.val_fraction`` of the
        training images of each class out.
    machine
        How to compute.
    snapshots
        Epochs after which the weights are kept in half precision; 0: before training.
    test
        Whether the part "test" of ``data`` is evaluated at the end, where there is one: with the classes of the
        training images. A finished run that was not evaluated yet is then evaluated by the same call.
    resume
        Insist that ``out`` holds a run to go on with.
    say
        Called with a line of text after each epoch.
    command
        The command line, kept beside the weights.
    network
        Trained instead of ``recipe.model``, which then only names it; it is changed in place.

    Returns
    -------
    Result
        The weights' path, the log and the test errors.

    Raises
    ------
    InputError, ImageError, UnknownNameError, ModelError
        If data, recipe or model cannot be used.
    TrainingError
        If the loss is no number, or ``out`` holds another run.
    KeyboardInterrupt
        After Ctrl-C; the state has been written.
    """
    recipe, machine = recipe or Recipe(), machine or Machine()
    wrong = next((epoch for epoch in snapshots if not 0 <= epoch <= recipe.epochs), None)
    if wrong is not None:
        raise InputError(f"snapshots: epoch {wrong} is not among 0…{recipe.epochs}")
    folder = Path(out)
    division = divide(data, val, recipe, test=test)
    with team(machine.device) as (members, device), torch.random.fork_rng():
        run = Run(
            folder, recipe, machine, division, members, device, network, tuple(snapshots), say or (lambda line: None)
        )
        run.begin(resume)
        result = finished(folder, run.position, recipe) if run.resumed else None
        members.wait()  # none reads that file any more when the first writes it anew
        if result is not None and (result.test is not None or division.test is None):
            return result
        if result is None:
            with noticed() as signals, _kept(folder):
                run.go(signals)
        if members.leads:
            if result is None:
                result = finish(
                    folder, recipe, run.identity, run.network, run.normaliser, division, run.position, command=command
                )
            # the weights are on disk by now: whatever is wrong with a test image, it does not cost the run
            result = tested(result, recipe, run.network, division, run.errors)
            run.say(result.summary)
        members.wait()
        return result or Result(folder, folder / "weights.safetensors", run.position.rows, {})


@contextmanager
def _kept(folder: Path) -> Iterator[None]:
    """Where an image cannot be read in the middle of the training, say that nothing is lost and what to do."""
    try:
        yield
    except ImageError as error:
        todo = f"the run is kept in {folder}: mend the image, and the same command goes on"
        raise ImageError(f"{error}; {todo}") from error
