"""Finished runs as models to explain: rebuilt from what is kept inside their weights."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open

from attribkit.errors import AttribkitError, CheckpointError
from attribkit.models.building import LoadedModel, described
from attribkit.models.checkpoint import load_weights, read_checkpoint
from attribkit.training.finish import WEIGHTS
from attribkit.training.networks import build_network
from attribkit.training.pixels import _square, centre_crop
from attribkit.training.recipe import Recipe

__all__ = ["load_run"]


def load_run(path: str | os.PathLike[str], weights: str | os.PathLike[str] | None = None) -> LoadedModel:
    """Load the network that `train` trained, with the preprocessing that it was evaluated by.

    Parameters
    ----------
    path
        A run's folder, or its ``weights.safetensors``. Nothing in it is executed.
    weights
        Other weights for the same network, such as one of the run's snapshots.

    Returns
    -------
    LoadedModel
        In eval mode; its labels are the training data's.

    Raises
    ------
    CheckpointError
        If there is no finished run, or its file is damaged.
    """
    folder = Path(path)
    file = folder / WEIGHTS if folder.is_dir() else folder
    try:
        with safe_open(file, framework="pt") as opened:
            about: dict[str, Any] = json.loads((opened.metadata() or {})["attribkit"])
        known = {field.name for field in dataclasses.fields(Recipe)}
        recipe = Recipe(**{key: value for key, value in about["recipe"].items() if key in known})
        labels, config = list(about["labels"]), dict(about["data_config"])
        drawn = dataclasses.replace(recipe, init="model", weights=None)
        network = build_network(drawn, len(labels), int(config["input_size"][0]))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, AttribkitError):
            raise
        raise CheckpointError(f"{file}: holds no weights of a finished run: {error}") from error
    source = os.fspath(weights) if weights is not None else os.fspath(file)
    load_weights(network, read_checkpoint(source), checkpoint=source, name=f"the run {folder}")
    loaded = described(f"run/{folder}", network, Path(source).name, labels, config, "the run")
    mean = file.parent / "mean.safetensors"
    if recipe.mean == "pixel":
        _subtract_image(loaded, read_checkpoint(mean)["mean"], recipe)
    return loaded


def _subtract_image(loaded: LoadedModel, mean: torch.Tensor, recipe: Recipe) -> None:
    """Make the preprocessing subtract a mean image [C, R, R] before its centre crop."""
    inner: Any = loaded.preprocess
    std = torch.tensor(loaded.denormalize.std).view(-1, 1, 1) * 255  # type: ignore[attr-defined]

    def transform(image: Image.Image) -> torch.Tensor:
        return centre_crop(_square(image, recipe.resize).float() - mean, recipe.size) / std

    inner.transform = transform
    inner.description += ", less the training set's mean image"
    loaded.preprocessing = inner.description
