"""The end of a run: test errors, curves, weights with all that is known of them; and snapshots on the way."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torchvision
from torch import Tensor, nn

from attribkit._kept import KeptError, read_header
from attribkit._version import __version__
from attribkit.attribution import write_atomically
from attribkit.errors import AttribkitError
from attribkit.training.division import Division
from attribkit.training.evaluation import errors_from
from attribkit.training.networks import Normaliser
from attribkit.training.pixels import Pixels
from attribkit.training.recipe import Recipe
from attribkit.training.storage import Position, save_tensors, write_curves

__all__ = ["WEIGHTS", "Result", "finish", "finished", "save_snapshot", "tested"]

WEIGHTS = "weights.safetensors"


@dataclass
class Result:
    """A finished run.

    Attributes
    ----------
    folder, weights
        The run's folder, and the file of the weights in it.
    rows
        The log, a dictionary an epoch: errors are fractions, ``seconds`` without validation.
    about
        What is kept beside the weights: recipe, data, versions, data config, test errors.
    """

    folder: Path
    weights: Path
    rows: list[dict[str, Any]]
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def test(self) -> dict[str, Any] | None:
        """Test errors by single and ten crops, or None."""
        found: dict[str, Any] | None = self.about.get("test")
        return found

    @property
    def summary(self) -> str:
        """The outcome in one line."""
        parts = [f"{self.weights}: {len(self.rows)} epochs"]
        if self.rows:
            parts.append(f"validation error {self.rows[-1]['val_error']:.2%}")
        if self.test:
            parts.append(f"test error {self.test['top1']:.2%} by one crop, {self.test['top1_ten_crops']:.2%} by ten")
        return ", ".join(parts)


def save_snapshot(folder: Path, network: nn.Module, epoch: int, recipe: Recipe) -> None:
    """Write the weights in half precision to ``snapshots/epoch-NNN.safetensors``."""
    (folder / "snapshots").mkdir(exist_ok=True)
    half = {name: t.half() if t.is_floating_point() else t for name, t in network.state_dict().items()}
    about = {"epoch": epoch, "recipe": recipe.to_dict()}
    save_tensors(folder / "snapshots" / f"epoch-{epoch:03d}.safetensors", half, about)


def finish(
    folder: Path,
    recipe: Recipe,
    identity: dict[str, Any],
    network: nn.Module,
    normaliser: Normaliser,
    division: Division,
    position: Position,
    *,
    command: str,
) -> Result:
    """Write ``weights.safetensors``, ``run.json`` and ``curves.png``, without test errors: see `tested`."""
    mean, std = normaliser.colours()
    about: dict[str, Any] = {
        "command": command,
        "recipe": recipe.to_dict(),
        "data": {key: identity[key] for key in ("data", "images", "val", "val_images", "classes_sha256")},
        "labels": list(division.labels),
        "data_config": {
            "input_size": [len(mean), recipe.size, recipe.size],
            "mean": mean,
            "std": std,
            "crop_pct": recipe.size / recipe.resize,
            "crop_mode": "center",
            "interpolation": "bilinear",
        },
        "epochs": position.epoch,
        "validation_error": position.rows[-1]["val_error"] if position.rows else None,
        "test": None,
        "versions": {
            "attribkit": __version__,
            "torch": str(torch.__version__),
            "torchvision": str(torchvision.__version__),
            "timm": str(timm.__version__),
            "python": platform.python_version(),
        },
    }
    if normaliser.image is not None:
        save_tensors(folder / "mean.safetensors", {"mean": normaliser.image}, {"unit": "0…255"})
    if position.rows:
        write_curves(folder / "curves.png", position.rows, f"{recipe.model} on {division.train.name}")
    return _written(Result(folder, folder / WEIGHTS, position.rows, about), network)


def tested(
    result: Result,
    recipe: Recipe,
    network: nn.Module,
    division: Division,
    evaluate: Callable[[Pixels, Tensor, int], Tensor],
) -> Result:
    """Evaluate a finished run on the test part, where there is one, and write what is known of it once more.

    Raises
    ------
    AttribkitError
        If a test image cannot be used; the run is kept, without test errors.
    """
    if division.test is None or division.test_classes is None:
        return result
    channels = int(result.about["data_config"]["input_size"][0])
    pixels = Pixels(division.test, np.arange(len(division.test)), recipe.resize, channels, budget=0)
    classes = torch.from_numpy(division.test_classes)
    try:
        one, ten = (errors_from(evaluate(pixels, classes, crops)) for crops in (1, 10))
    except AttribkitError as error:
        raise type(error)(
            f"{error}; the run is finished and kept in {result.folder}, without test errors: mend {division.test.name}"
            " and give the same command again, or give it with --no-test"
        ) from error
    found = {
        "data": division.test.name,
        "images": one.images,
        "top1": one.top1,
        "top5": one.top5,
        "top1_ten_crops": ten.top1,
        "top5_ten_crops": ten.top5,
    }
    return _written(Result(result.folder, result.weights, result.rows, {**result.about, "test": found}), network)


def _written(result: Result, network: nn.Module) -> Result:
    write_atomically(result.folder / "run.json", (json.dumps(result.about, indent=2) + "\n").encode())
    save_tensors(result.weights, network.state_dict(), result.about)
    return result


def finished(folder: Path, position: Position, recipe: Recipe) -> Result | None:
    """Return the result that the folder holds already, if the run is at its end."""
    weights = folder / WEIGHTS
    if not weights.exists() or not (position.epoch == recipe.epochs or position.stopped) or position.step:
        return None
    try:
        about = read_header(weights)
    except (KeptError, OSError):
        return None
    return Result(folder, weights, position.rows, about) if about.get("epochs") == position.epoch else None
