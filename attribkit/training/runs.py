"""Finished runs as models to explain: rebuilt from what is kept inside their weights."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from attribkit._kept import DAMAGE, KeptError, one_line, read_header
from attribkit.errors import AttribkitError, CheckpointError
from attribkit.models.building import LoadedModel, described
from attribkit.models.checkpoint import load_weights, read_checkpoint
from attribkit.models.preprocess import Denormalize
from attribkit.training.finish import WEIGHTS
from attribkit.training.networks import AsEvaluated, Normaliser, build_network
from attribkit.training.pixels import centre_crop
from attribkit.training.recipe import Recipe

__all__ = ["is_run", "load_run"]

_FOREIGN = (
    "checkpoint_path",
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "pretrained_strict",
    "cache_dir",
)
_ROOM, _ROOM_A_BYTE = 2**28, 8
_MAKERS = (torch.ops.aten.empty, torch.ops.aten.zeros, torch.ops.aten.ones, torch.ops.aten.full)


def is_run(path: str | os.PathLike[str]) -> bool:
    """Tell whether a path is the folder of a finished run, or the weights in one."""
    found = Path(path)
    file = found if found.name == WEIGHTS else found / WEIGHTS
    try:
        return file.is_file() and file.with_name("run.json").is_file()
    except (OSError, ValueError):  # no path at all
        return False


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
        about = read_header(file)
        known = {field.name for field in dataclasses.fields(Recipe)}
        recipe = Recipe(**{key: value for key, value in about["recipe"].items() if key in known})
        labels, config = [str(label) for label in about["labels"]], dict(about["data_config"])
        drawn = dataclasses.replace(recipe, init="model", weights=None)
        _check_options(recipe)
        with _Bounded(file):
            network = build_network(drawn, len(labels), int(config["input_size"][0]))
    except KeptError as error:
        raise CheckpointError(f"{file}: holds no weights of a finished run: {error}") from error
    except AttribkitError as error:
        if len(str(error)) <= 1000:
            raise
        raise CheckpointError(f"{file}: {one_line(error, 1000)}") from error  # it quotes an option that is very long
    except (OSError, *DAMAGE) as error:
        raise CheckpointError(f"{file}: holds no weights of a finished run: {one_line(error)}") from error
    source = os.fspath(weights) if weights is not None else os.fspath(file)
    load_weights(network, read_checkpoint(source), checkpoint=source, name=f"the run {folder}")
    try:
        loaded = described(f"run/{folder}", network, Path(source).name, labels, config, "the run")
    except AttribkitError:
        raise
    except (RuntimeError, *DAMAGE) as error:
        raise CheckpointError(f"{file}: its preprocessing is none: {one_line(error)}") from error
    if loaded.input_size[1:] != (recipe.size, recipe.size):
        raise CheckpointError(f"{file}: its input is {loaded.input_size}, its recipe's size={recipe.size}")
    image = _mean_image(file.parent / "mean.safetensors", recipe, loaded) if recipe.mean == "pixel" else None
    _prepare(loaded, recipe, image)
    return loaded


def _check_options(recipe: Recipe) -> None:
    """Refuse options by which timm would read other files, by ``pickle`` perhaps, or fetch some."""
    if not isinstance(recipe.model, str) or not isinstance(recipe.model_options, Mapping):
        raise ValueError("its recipe names no model")
    for option in recipe.model_options:
        if option in _FOREIGN:
            raise ValueError(f"its recipe has the option {option!r}, by which other files would be read")


class _Bounded(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While a network is built, refuse to allocate far more than the file of its weights can fill."""

    def __init__(self, file: Path) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.room = _ROOM + _ROOM_A_BYTE * file.stat().st_size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count what is made; ``empty`` has touched no memory yet when it is refused."""
        if func.overloadpacket in _MAKERS:
            shape = next((arg for arg in args if isinstance(arg, list | tuple)), ())
            self.room -= 4 * math.prod(shape)
            if self.room < 0:
                raise CheckpointError("its recipe makes a network that is far larger than the file of its weights")
        return func(*args, **(kwargs or {}))


def _mean_image(file: Path, recipe: Recipe, loaded: LoadedModel) -> torch.Tensor:
    """Read the mean image that a run subtracts, [C, R, R] in 0…255."""
    image = read_checkpoint(file).get("mean")
    shape = (loaded.input_size[0], recipe.resize, recipe.resize)
    if image is None or tuple(image.shape) != shape or not bool(image.float().isfinite().all()):
        raise CheckpointError(f"{file}: holds no mean image of {'×'.join(map(str, shape))} numbers")
    return image.float()


def _prepare(loaded: LoadedModel, recipe: Recipe, image: torch.Tensor | None) -> None:
    """Make the preprocessing what the run was evaluated by, and its inverse the inverse of that."""
    inner: Any = loaded.preprocess
    back: Any = loaded.denormalize
    mean, std = (torch.tensor(numbers).view(-1, 1, 1) * 255 for numbers in (back.mean, back.std))
    inner.transform = AsEvaluated(Normaliser(mean if image is None else image, std), recipe.resize, recipe.size)
    if image is not None:
        loaded.denormalize = _AddImage(back.mean, back.std, image / 255, recipe.size)
        inner.description += ", less the training set's mean image"
    loaded.preprocessing = inner.description


class _AddImage(Denormalize):
    """Inverts a normalisation that subtracts a mean image.

    Parameters
    ----------
    mean, std
        The mean image's mean colour, and what was divided by.
    image
        The mean image [C, R, R] in 0…1.
    size
        The side of the crop that the preprocessing takes from the centre.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], image: torch.Tensor, size: int) -> None:
        super().__init__(mean, std)
        self.image, self.size = image, size

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return ``inputs * std + mean`` [..., C, H, W], cut to [0, 1].

        What is added is the mean image where the inputs are whole, and its centre where they are what the
        preprocessing returns. Where another size came from is not known: to that the mean colour is added.

        Raises
        ------
        InputError
            If ``inputs`` has another number of channels.
        """
        sides, whole = tuple(inputs.shape[-2:]), self.image.shape[-1]
        if inputs.dim() < 3 or inputs.shape[-3] != len(self.mean) or sides not in ((self.size,) * 2, (whole,) * 2):
            return super().__call__(inputs)
        values = inputs.detach() if inputs.is_floating_point() else inputs.float()
        std = values.new_tensor(self.std).view(-1, 1, 1)
        return (values * std + centre_crop(self.image, sides[0]).to(values)).clamp(0, 1)

    def __repr__(self) -> str:
        """Show mean and std."""
        return f"{super().__repr__()[:-1]}, image={'×'.join(map(str, self.image.shape))})"
