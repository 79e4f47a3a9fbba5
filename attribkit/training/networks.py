"""The network of a run: built from a recipe, and what turns bytes into its input."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Mapping
from typing import Any

import timm
import torch
from PIL import Image
from torch import Tensor, nn

from attribkit.errors import InputError, ModelError, UnknownNameError, did_you_mean
from attribkit.models._zfnet import ZFNet, zfnet
from attribkit.models.building import guarded
from attribkit.models.checkpoint import load_weights, read_checkpoint, without_prefixes
from attribkit.training.pixels import Pixels, centre_crop, order, square
from attribkit.training.recipe import Recipe
from attribkit.training.steps import initialise

__all__ = ["AsEvaluated", "Normaliser", "build_network", "input_std", "measure_mean"]

#: The training set's mean is taken over at most this many of its images.
MEAN_IMAGES = 10_000

#: The standard deviation of inputs spread evenly over [-128, 128], which is what zfnet's are roughly.
INPUT_SPREAD = 128 / math.sqrt(3)


def build_network(recipe: Recipe, num_classes: int, in_chans: int) -> nn.Module:
    """Build a recipe's network with weights drawn from its seed; torch's generator is left as it was.

    Parameters
    ----------
    recipe
        ``model``, ``model_options``, ``size``, ``init``, ``weights`` and ``seed`` matter.
    num_classes, in_chans
        Outputs, and channels of the input where ``model_options`` does not say.

    Raises
    ------
    UnknownNameError
        If neither attribkit nor timm has the model, or zfnet no such option.
    ModelError
        If it cannot be built.
    CheckpointError
        If the file of weights cannot be read or does not fit.
    """
    options: dict[str, Any] = {"in_chans": in_chans, **recipe.model_options, "num_classes": num_classes}
    name = recipe.model.removeprefix("timm/")
    if name == "zfnet":
        known = [key for key in inspect.signature(ZFNet).parameters if key not in ("device", "dtype", "num_classes")]
        wrong = next((key for key in recipe.model_options if key not in known), None)
        if wrong is not None:
            raise UnknownNameError(f"zfnet has no option {wrong!r}: {did_you_mean(wrong, known)}")
        options.setdefault("img_size", recipe.size)
    elif not timm.is_model(name):
        raise UnknownNameError(f"unknown model {recipe.model!r}: {did_you_mean(name, ['zfnet', *timm.list_models()])}")
    else:
        config = timm.get_pretrained_cfg(name)
        if config is not None and config.fixed_input_size:
            options.setdefault("img_size", recipe.size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        make: Any = zfnet if name == "zfnet" else functools.partial(timm.create_model, name)
        network: nn.Module = guarded(f"{recipe.model} with {_shown(options)}", lambda: make(**options))
        how = recipe.init or ("paper" if name == "zfnet" else "model")
        initialise(network, how, INPUT_SPREAD if name == "zfnet" else 1.0)
    if recipe.weights is not None:
        state = without_prefixes(read_checkpoint(recipe.weights), network)
        load_weights(network, state, checkpoint=recipe.weights, name=recipe.model)
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise ModelError(f"{recipe.model} has no weights to train")
    return network


class Normaliser:
    """Turns bytes into a network's input: ``(bytes - mean) / std``.

    Attributes
    ----------
    mean
        [C, 1, 1], or [C, R, R] for a mean image; in 0…255.
    std
        [C, 1, 1], in 0…255; 1 leaves inputs roughly in [-128, 128] (§3).
    """

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        self.mean, self.std = mean, std

    @property
    def image(self) -> Tensor | None:
        """The mean image [C, R, R], to be subtracted before a crop is taken; None where the mean is a colour."""
        return self.mean if self.mean.shape[-1] > 1 else None

    def __call__(self, images: Tensor) -> Tensor:
        """Return the input, float32, for crops [n, C, size, size]: bytes, or floats with the mean image subtracted."""
        values = images.float()
        if self.image is None:
            values = values - self.mean.to(values.device)
        return values if bool((self.std == 1).all()) else values / self.std.to(values.device)

    def centred(self, images: Tensor) -> Tensor:
        """Return whole images [n, C, R, R] less the mean image, where there is one: ready for crops."""
        return images if self.image is None else images.float() - self.image

    def colours(self) -> tuple[list[float], list[float]]:
        """Return mean and std a channel, in 0…1, as a data config states them."""
        return (self.mean.mean(dim=(1, 2)) / 255).tolist(), (self.std.flatten() / 255).tolist()


class AsEvaluated:
    """Turns an image into a network's input by the very steps that `attribkit.training.train` evaluates by.

    timm's own transform, by the run's data config, comes close only: it finds the size to resize to by a division that
    may end one pixel below, and cuts the ten crops from the whole image in place of the square.

    Parameters
    ----------
    normaliser
        The run's.
    resize, size
        The recipe's.
    """

    def __init__(self, normaliser: Normaliser, resize: int, size: int) -> None:
        self.normaliser, self.resize, self.size = normaliser, resize, size

    def __call__(self, image: Image.Image) -> Tensor:
        """Return the input [C, size, size] for an image of the network's channels: its centre."""
        return self.finish(centre_crop(self.whole(image), self.size))

    def whole(self, image: Image.Image) -> Tensor:
        """Return what crops are cut from, [C, resize, resize]."""
        return self.normaliser.centred(square(image, self.resize)[None])[0]

    def finish(self, crop: Tensor) -> Tensor:
        """Return a crop of that as input."""
        return self.normaliser(crop)


def measure_mean(pixels: Pixels, recipe: Recipe, network: nn.Module) -> Normaliser:
    """Return what normalises a run's input.

    Parameters
    ----------
    pixels
        The training images; the mean is that of the first `MEAN_IMAGES` (in an order drawn from the seed).
    recipe
        ``mean`` says which.
    network
        Its data config gives std, and the mean with ``mean="model"``.

    Raises
    ------
    InputError
        If the model's data config has no mean for this number of channels.
    """
    channels = pixels.channels
    zf = recipe.model.removeprefix("timm/") == "zfnet"
    how = recipe.mean or ("channel" if zf else "model")
    config: Mapping[str, Any] = getattr(network, "pretrained_cfg", None) or {}
    std = input_std(recipe, network, channels)
    if how == "model":
        return Normaliser(_stated(config, "mean", channels, recipe.model), std)
    numbers = order(len(pixels), recipe.seed, 0)[:MEAN_IMAGES]
    total = torch.zeros(channels, recipe.resize, recipe.resize, dtype=torch.float64)
    for start in range(0, len(numbers), 256):
        total += pixels.take(numbers[start : start + 256]).sum(dim=0, dtype=torch.float64)
    mean = (total / len(numbers)).float()
    if how == "channel":
        mean = mean.double().mean(dim=(1, 2), keepdim=True).float()
    elif recipe.resize == 1:
        raise InputError("mean='pixel' needs images of more than one pixel")
    return Normaliser(mean, std)


def input_std(recipe: Recipe, network: nn.Module, channels: int) -> Tensor:
    """Return what a run divides by, [C, 1, 1] in 0…255: 1 for zfnet, else the std in the model's data config."""
    if recipe.model.removeprefix("timm/") == "zfnet":
        return torch.ones(channels, 1, 1)
    return _stated(getattr(network, "pretrained_cfg", None) or {}, "std", channels, recipe.model)


def _stated(config: Mapping[str, Any], key: str, channels: int, name: str) -> Tensor:
    numbers = tuple(config.get(key) or ())
    if len(numbers) != channels and len(numbers) > 1 and channels == 1:
        numbers = (sum(numbers) / len(numbers),)
    if len(numbers) != channels:
        raise InputError(f"{name}: its data config states no {key} for {channels} channels; use --mean channel")
    return torch.tensor(numbers, dtype=torch.float32).mul(255).view(channels, 1, 1)


def _shown(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in options.items())
