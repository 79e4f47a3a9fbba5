"""Which part of the network matters: each variant trained anew by the same recipe (paper, Table 3)."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from attribkit.attribution import write_atomically
from attribkit.datasets import ImageSource
from attribkit.models.checkpoint import load_weights, read_checkpoint
from attribkit.training.division import divide
from attribkit.training.evaluation import errors_from, evaluate
from attribkit.training.finish import Result
from attribkit.training.loop import STATE
from attribkit.training.machine import Machine
from attribkit.training.networks import Normaliser
from attribkit.training.pixels import Pixels
from attribkit.training.recipe import Recipe
from attribkit.training.trainer import train
from attribkit.training.variants import build_variant, find_variants

__all__ = ["AblationRow", "ablation"]

#: The training error is measured on at most this many of the training images.
TRAIN_IMAGES = 10_000


@dataclass(frozen=True)
class AblationRow:
    """A variant's outcome.

    Attributes
    ----------
    variant, summary
        Its name, and in words.
    parameters
        How many weights it has.
    epochs
        How long it was trained.
    train_error, val_error
        Top-1 errors after training, by one crop and without dropout: on the training images (the first 10,000), and
        on the validation images.
    test_error
        On the part "test" of the data; None where there is none.
    """

    variant: str
    summary: str
    parameters: int
    epochs: int
    train_error: float
    val_error: float
    test_error: float | None


def ablation(
    data: str | ImageSource,
    out: str | os.PathLike[str],
    recipe: Recipe | None = None,
    *,
    variants: Sequence[str] | None = None,
    val: str | ImageSource | None = None,
    machine: Machine | None = None,
    test: bool = True,
    say: Callable[[str], None] | None = None,
    command: str = "",
) -> list[AblationRow]:
    """Train variants of ZFNet by one recipe and compare their errors (paper, Table 3).

    Each variant is a run of its own in ``out/NAME``, so that a comparison that was stopped goes on when called again.

    Parameters
    ----------
    data, out, recipe, val, machine, test, say, command
        As for `attribkit.training.train`.
    variants
        Names of `attribkit.training.variants.VARIANTS`; None takes all.

    Returns
    -------
    list of AblationRow
        One a variant; also written to ``out/ablation.csv`` and drawn in ``out/ablation.png``.

    Raises
    ------
    UnknownNameError
        If there is no such variant.
    InputError
        If the recipe's model is not zfnet, and for what `train` raises it.
    """
    recipe, machine = recipe or Recipe(), machine or Machine()
    chosen = find_variants(None if variants is None else tuple(variants))
    division = divide(data, val, recipe, test=test)
    channels = int(recipe.model_options.get("in_chans", division.channels))
    rows: list[AblationRow] = []
    folder = Path(out)
    for variant in chosen:
        network = build_variant(variant, recipe, len(division.labels), channels)
        result = train(
            data,
            folder / variant.name,
            recipe,
            val=val,
            machine=machine,
            test=test,
            say=_named(variant.name, say),
            command=command,
            network=network,
        )
        load_weights(
            network, read_checkpoint(result.weights), checkpoint=str(result.weights), name=variant.name
        )  # a run that was done before is not in the network
        seen = Pixels(division.train, division.train_rows[:TRAIN_IMAGES], recipe.resize, channels, machine.cache)
        counts = evaluate(
            network, seen, torch.from_numpy(division.train_classes), _normaliser(result), recipe.size,
            device=next(network.parameters()).device,
        )  # fmt: skip
        rows.append(
            AblationRow(
                variant.name,
                variant.summary,
                sum(parameter.numel() for parameter in network.parameters()),
                len(result.rows),
                errors_from(counts).top1,
                result.rows[-1]["val_error"] if result.rows else float("nan"),
                result.test["top1"] if result.test else None,
            )
        )
    _write(folder, rows)
    return rows


def _named(name: str, say: Callable[[str], None] | None) -> Callable[[str], None] | None:
    return None if say is None else lambda line: say(f"{name}: {line}")


def _normaliser(result: Result) -> Normaliser:
    mean = read_checkpoint(result.folder / STATE)["mean"]
    return Normaliser(mean, torch.ones(len(mean), 1, 1))


def _write(folder: Path, rows: list[AblationRow]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(AblationRow.__dataclass_fields__), lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    write_atomically(folder / "ablation.csv", text.getvalue().encode())
    write_atomically(folder / "ablation.png", _drawn(rows))


def _drawn(rows: list[AblationRow]) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.2 + 0.42 * len(rows)), layout="constrained")
    axes: Any = figure.add_subplot()
    places = np.arange(len(rows))
    for offset, (part, label) in enumerate((("train_error", "training"), ("val_error", "validation"))):
        axes.barh(places + 0.38 * (offset - 0.5), [100 * getattr(row, part) for row in rows], 0.36, label=label)
    axes.set_yticks(places, [f"{row.summary}\n{row.parameters:,} weights" for row in rows], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("top-1 error, %")
    axes.legend(frameon=False)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=110)
    return drawn.getvalue()
