"""ZFNet with layers taken away or resized: the rows of the paper's Table 3."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from attribkit.errors import InputError, UnknownNameError, did_you_mean
from attribkit.training.networks import build_network
from attribkit.training.recipe import Recipe

__all__ = ["VARIANTS", "Variant", "build_variant", "find_variants"]

#: The layers with weights, in order, and what goes with each when it is taken away.
CHAIN = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")
_WITH = {"conv3": ("relu3",), "conv4": ("relu4",), "fc6": ("relu6", "drop6"), "fc7": ("relu7", "drop7")}


@dataclass(frozen=True)
class Variant:
    """How a network differs from ZFNet.

    Attributes
    ----------
    name, summary
        What it is called, and in words.
    removed
        Layers taken away, of conv3, conv4, fc6, fc7: what follows reads what went before.
    factors
        Multiplies a layer's outputs.
    """

    name: str
    summary: str
    removed: tuple[str, ...] = ()
    factors: Mapping[str, float] = field(default_factory=dict)


_HALF, _DOUBLE = ({"fc6": factor, "fc7": factor} for factor in (0.5, 2.0))
_MAPS = {"conv3": 512 / 384, "conv4": 1024 / 384, "conv5": 512 / 256}

#: The paper's Table 3, as ratios to the network's own widths: 2048 units are half of 4096, 8192 twice as many.
VARIANTS: tuple[Variant, ...] = (
    Variant("full", "ZFNet as it is"),
    Variant("no-3-4", "conv3 and conv4 removed", ("conv3", "conv4")),
    Variant("no-7", "fc7 removed", ("fc7",)),
    Variant("no-6-7", "fc6 and fc7 removed", ("fc6", "fc7")),
    Variant("no-3-4-6-7", "conv3, conv4, fc6 and fc7 removed", ("conv3", "conv4", "fc6", "fc7")),
    Variant("fc-2048", "fc6 and fc7 half as wide", factors=_HALF),
    Variant("fc-8192", "fc6 and fc7 twice as wide", factors=_DOUBLE),
    Variant("maps-512-1024-512", "conv3, conv4, conv5 with 512, 1024, 512 maps", factors=_MAPS),
    Variant("maps-512-1024-512-fc-8192", "more maps, and fc6 and fc7 twice as wide", factors={**_MAPS, **_DOUBLE}),
)


def find_variants(names: tuple[str, ...] | None) -> tuple[Variant, ...]:
    """Return variants by name, all of them for None.

    Raises
    ------
    UnknownNameError
        If there is none of a name.
    """
    known = {variant.name: variant for variant in VARIANTS}
    wrong = next((name for name in names or () if name not in known), None)
    if wrong is not None:
        raise UnknownNameError(f"there is no variant {wrong!r}: {did_you_mean(wrong, known)}")
    return VARIANTS if names is None else tuple(known[name] for name in names)


def build_variant(variant: Variant, recipe: Recipe, num_classes: int, in_chans: int) -> nn.Module:
    """Build a variant of the recipe's ZFNet, with weights drawn from the recipe's seed.

    Layers taken away become identities, so that the modules keep their names; their neighbours are resized to fit.

    Raises
    ------
    InputError
        If the recipe's model is not zfnet, or a layer cannot be taken away.
    """
    from attribkit.training.networks import INPUT_SPREAD
    from attribkit.training.steps import initialise

    if recipe.model.removeprefix("timm/") != "zfnet":
        raise InputError(f"variants are of zfnet, not of {recipe.model}")
    wrong = next((layer for layer in variant.removed if layer not in _WITH), None)
    if wrong is not None:
        raise InputError(f"variant {variant.name}: {wrong} cannot be taken away, of {', '.join(_WITH)} any can")
    network: Any = build_network(recipe, num_classes, in_chans)
    positions = network.fc6.in_features // network.conv5.out_channels
    width = in_chans = network.conv1.in_channels
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        for name in CHAIN:
            if name in variant.removed:
                for gone in (name, *_WITH[name]):
                    setattr(network, gone, nn.Identity())
                continue
            layer = getattr(network, name)
            if name.startswith("fc") and positions:
                width, positions = width * positions, 0  # the first linear layer reads every position of pool5's map
            conv = isinstance(layer, nn.Conv2d)
            outputs = layer.out_channels if conv else layer.out_features
            outputs = outputs if name == "fc8" else max(1, round(outputs * variant.factors.get(name, 1.0)))
            setattr(network, name, _like(layer, width, outputs))
            width = outputs
        initialise(network, recipe.init or "paper", INPUT_SPREAD)
    network.num_features = network.conv5.out_channels
    network.head_hidden_size = network.fc8.in_features
    built: nn.Module = network
    return built


def _like(layer: nn.Module, inputs: int, outputs: int) -> nn.Module:
    if isinstance(layer, nn.Conv2d):
        return nn.Conv2d(inputs, outputs, layer.kernel_size, layer.stride, layer.padding)  # type: ignore[arg-type]
    return nn.Linear(inputs, outputs)
