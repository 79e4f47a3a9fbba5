"""What a run keeps on disk: the state it resumes from, its log and curves. All appear whole or not at all."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from attribkit._kept import DAMAGE, one_line, read_kept
from attribkit.attribution import write_atomically
from attribkit.training.recipe import TrainingError, differences
from attribkit.training.steps import Plateau

__all__ = ["COLUMNS", "Position", "load_state", "save_state", "save_tensors", "write_curves", "write_log"]

FORMAT = "attribkit run 1"
COLUMNS = ("epoch", "lr", "train_loss", "train_error", "val_loss", "val_error", "seconds", "images_per_second")


@dataclass
class Position:
    """How far a run is.

    Attributes
    ----------
    epoch, step
        Epochs done, and steps done of the next one.
    sums
        Of that one: summed loss, errors, images, seconds.
    plateau
        The learning rate and what it depends on.
    rows
        The log.
    scaler
        State of the loss scaling (float16 only).
    stopped
        The learning rate fell below its least: there is no next epoch.
    """

    plateau: Plateau
    epoch: int = 0
    step: int = 0
    sums: list[float] = field(default_factory=lambda: [0.0] * 4)
    rows: list[dict[str, Any]] = field(default_factory=list)
    scaler: dict[str, Any] = field(default_factory=dict)
    stopped: bool = False


def save_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write a safetensors file with JSON metadata under a temporary name, then rename it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(held, temporary, {"attribkit": json.dumps(about)})
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_state(
    path: Path, identity: Mapping[str, Any], network: nn.Module, optimiser: Any, mean: Tensor, position: Position
) -> None:
    """Write all that a run needs to go on from here.

    No random state is among it: every draw is a function of the seed and the position.
    """
    tensors = {f"model/{name}": tensor for name, tensor in network.state_dict().items()}
    for name, parameter in network.named_parameters():
        buffer = optimiser.state.get(parameter, {}).get("momentum_buffer")
        if buffer is not None:
            tensors[f"momentum/{name}"] = buffer
    tensors["mean"] = mean
    kept = {**vars(position), "plateau": position.plateau.to_dict()}
    save_tensors(path, tensors, {"format": FORMAT, "identity": identity, "position": kept})


def load_state(path: Path, identity: Mapping[str, Any], network: nn.Module, optimiser: Any) -> tuple[Position, Tensor]:
    """Fill network and optimiser from what `save_state` wrote; return the position and the mean.

    Raises
    ------
    TrainingError
        If the file is no such state, or of a run with another configuration.
    """
    try:
        about, tensors = read_kept(path)
        if about["format"] != FORMAT:
            raise TrainingError(f"{path}: is of format {about['format']!r:.60}, not {FORMAT!r}")
        apart = differences(about["identity"], json.loads(json.dumps(identity)))
        if apart:
            raise TrainingError(
                f"{path.parent} holds another run: {one_line('; '.join(apart), 2000)}; give the same options, or"
                " another --out"
            )
        kept = dict(about["position"])
        position = Position(**{**kept, "plateau": Plateau.from_dict(kept["plateau"])})
        _check_position(position)
        mean = tensors["mean"]
        weights = {name.removeprefix("model/"): t for name, t in tensors.items() if name.startswith("model/")}
        momenta = {name: tensors.get(f"momentum/{name}") for name, _ in network.named_parameters()}
        for name, parameter in network.named_parameters():
            momentum = momenta[name]
            if momentum is not None and momentum.shape != parameter.shape:
                raise ValueError(f"the momentum of {name} is of another shape")
        network.load_state_dict(weights)
    except (OSError, RuntimeError, *DAMAGE) as error:
        if isinstance(error, TrainingError):
            raise
        raise TrainingError(f"{path}: is not the state of a run: {one_line(error)}") from error
    for name, parameter in network.named_parameters():
        momentum = momenta[name]
        if momentum is not None:
            held = torch.zeros_like(parameter)
            held.copy_(momentum)
            optimiser.state[parameter]["momentum_buffer"] = held
    return position, mean


def _check_position(position: Position) -> None:
    """Check a position from a file; ValueError where it is none."""
    counts = all(type(n) is int and n >= 0 for n in (position.epoch, position.step))
    sums = isinstance(position.sums, list) and len(position.sums) == 4
    rows = isinstance(position.rows, list) and all(isinstance(row, dict) for row in position.rows)
    if not counts or not sums or not rows or not all(isinstance(n, int | float) for n in position.sums):
        raise ValueError("its note of how far the run is, is none")


def write_log(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Write ``log.csv`` and ``log.jsonl``: a row an epoch, errors as fractions."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(folder / "log.csv", text.getvalue().encode())
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    write_atomically(folder / "log.jsonl", lines.encode())


def write_curves(path: Path, rows: list[dict[str, Any]], title: str) -> None:
    """Draw loss and error by epoch, with marks where the learning rate was annealed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    epochs = [row["epoch"] for row in rows]
    annealed = [now["epoch"] for before, now in pairwise(rows) if now["lr"] < before["lr"]]
    for place, (what, scale) in enumerate((("loss", 1), ("error", 100))):
        axes = figure.add_subplot(1, 2, place + 1)
        for part, style in (("train", "-"), ("val", "-o")):
            values = [row[f"{part}_{what}"] * scale for row in rows]
            axes.plot(epochs, values, style, markersize=3, label="training" if part == "train" else "validation")
        for epoch in annealed:
            axes.axvline(epoch, color="0.7", linewidth=0.8, linestyle=":")
        axes.set_xlabel("epoch")
        axes.set_ylabel("cross-entropy" if what == "loss" else "top-1 error, %")
        axes.legend(frameon=False)
    figure.suptitle(title, fontsize=10)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=110)
    write_atomically(path, drawn.getvalue())
