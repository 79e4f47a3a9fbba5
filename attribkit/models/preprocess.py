"""From a photograph to a model's input and back, by the transform that belongs to the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform
from torch import nn

from attribkit._kept import one_line
from attribkit.errors import InputError, InputTypeError, ModelError
from attribkit.images import check_size, to_rgb

__all__ = ["Denormalize", "Preprocess", "find_normalization", "timm_preprocess"]


class Preprocess:
    """Turns an image of any mode into a model's input, float32 [C, H, W].

    Parameters
    ----------
    transform
        Takes an RGB (or, for one channel, an L) image and returns a tensor [C, H, W].
    channels
        3 or 1.
    description
        Where the transform comes from and what it does, in one line.

    Raises
    ------
    ModelError
        If the model takes another number of channels: a photograph cannot be turned into its input.
    """

    def __init__(self, transform: Callable[[Image.Image], Any], channels: int, description: str = "") -> None:
        if channels not in (1, 3):
            raise ModelError(f"the model takes {channels} channels; a photograph has 3 (or 1 as grey)")
        self.transform, self.channels, self.description = transform, channels, description

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """Return the model's input for ``image`` [C, H, W].

        Raises
        ------
        InputTypeError
            If ``image`` is no Pillow image.
        ImageError
            If the image cannot be used (see `attribkit.images`).
        """
        if not isinstance(image, Image.Image):
            raise InputTypeError(f"preprocess takes a PIL image, got {type(image).__name__}")
        check_size(image.size)
        image = to_rgb(image)
        tensor: torch.Tensor = self.transform(image if self.channels == 3 else image.convert("L"))
        return tensor

    def __repr__(self) -> str:
        """Say what is done."""
        return f"Preprocess({self.description})"


class Denormalize:
    """Inverts a normalisation, for display.

    Parameters
    ----------
    mean, std
        What the transform subtracted and then divided by, one number a channel.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean, self.std = tuple(map(float, mean)), tuple(map(float, std))

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return ``inputs * std + mean`` [..., C, H, W], cut to [0, 1].

        Raises
        ------
        InputError
            If ``inputs`` has another number of channels.
        """
        if inputs.dim() < 3 or inputs.shape[-3] != len(self.mean):
            raise InputError(f"denormalize takes [..., {len(self.mean)}, H, W], got {list(inputs.shape)}")
        values = inputs.detach() if inputs.is_floating_point() else inputs.float()
        mean, std = (values.new_tensor(numbers).view(-1, 1, 1) for numbers in (self.mean, self.std))
        return (values * std + mean).clamp(0, 1)

    def __repr__(self) -> str:
        """Show mean and std."""
        return f"Denormalize(mean={self.mean}, std={self.std})"


def find_normalization(transform: Any, channels: int) -> Denormalize:
    """Return the inverse of the normalisation in ``transform``: the identity where there is none.

    Parameters
    ----------
    transform
        A ``Compose`` with a ``Normalize``, or one of torchvision's presets.
    channels
        Channels of the model's input.
    """
    for step in [transform, *getattr(transform, "transforms", ())]:
        mean, std = getattr(step, "mean", None), getattr(step, "std", None)
        if mean is not None and std is not None:
            return Denormalize(*(n.tolist() if isinstance(n, torch.Tensor) else list(n) for n in (mean, std)))
    return Denormalize([0.0] * channels, [1.0] * channels)


def timm_preprocess(
    model: nn.Module, config: Mapping[str, Any] | None = None, origin: str = "the model's data config"
) -> tuple[Preprocess, Denormalize, tuple[int, int, int]]:
    """Return preprocessing, its inverse and the input size by the data config that the model itself bears.

    Parameters
    ----------
    model
        A model of timm's; where its data config states no mean and std, it gets timm's defaults and the description
        says so.
    config
        Taken instead of the model's ``pretrained_cfg``: input_size, interpolation, crop_pct, crop_mode, mean, std.
    origin
        What the description calls it.

    Raises
    ------
    ModelError
        If input_size, mean and std do not go together, or the input is not an image of 1 or 3 channels.
    """
    given: Mapping[str, Any] = (getattr(model, "pretrained_cfg", None) or {}) if config is None else config
    resolve: Any = resolve_model_data_config  # timm leaves it untyped
    resolved = resolve(model, pretrained_cfg=dict(given))
    size, mean, std = tuple(resolved["input_size"]), resolved["mean"], resolved["std"]
    if len(size) != 3 or not len(mean) == len(std) == size[0]:
        what = f"input_size {size}, mean {mean}, std {std}"
        raise ModelError(f"the model's data config does not go together: {one_line(what)}")
    stated = given.get("mean") is not None and given.get("std") is not None
    shown = [", ".join(str(round(float(value), 6)) for value in numbers) for numbers in (mean, std)]
    if size[0] > 1:
        shown = [f"({numbers})" for numbers in shown]
    if not stated:
        origin = "timm's defaults, as the model states no mean and std"
    description = (
        f"{origin}: {'×'.join(map(str, size))}, {resolved['interpolation']}, crop {resolved['crop_pct']:g}"
        f" {resolved['crop_mode']}, mean {shown[0]}, std {shown[1]}"
    )
    transform = create_transform(**resolved, is_training=False)
    return Preprocess(transform, size[0], description), find_normalization(transform, size[0]), size
