"""What a model says at some of its layers, and which layers are asked when none are named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import attribkit
from attribkit.engine.inspection import Inspection
from attribkit.engine.outputs import class_scores
from attribkit.engine.sites import Site
from attribkit.engine.walk import Walk
from attribkit.errors import InputError, InputTypeError, ModelError

__all__ = ["Seen", "before_classifier", "check_layers", "first_layer", "last_linear", "look", "top_maps"]

#: Sites that change no value, so that the layer before them is the one to name.
_PASSING = frozenset({"dropout", "flatten"})


@dataclass
class Seen:
    """What one forward pass showed.

    Attributes
    ----------
    values : dict of str to Tensor
        The layers' outputs.
    layouts : dict of str to str or None
        Where their features are (``"NCHW"``, …).
    output : object
        The model's output.
    """

    values: dict[str, Tensor]
    layouts: dict[str, str | None]
    output: Any

    def vectors(self, layer: str) -> Tensor:
        """Return a layer's output as one feature vector a sample, [N, D]."""
        return self.values[layer].flatten(1)

    def probabilities(self) -> Tensor:
        """Return the softmax of the class scores [N, K]; `ModelError` where there are none."""
        return class_scores(self.output).softmax(1)


def look(model: nn.Module, inputs: Tensor, layers: Sequence[str]) -> Seen:
    """Run the model once, without gradients, and keep some layers' outputs.

    The caller has put the model into a state to run in (`attribkit.engine.state.pristine`).

    Parameters
    ----------
    model, inputs
        The model and its input [N, C, H, W].
    layers
        Names of layers.

    Raises
    ------
    UnknownNameError
        The forward pass calls no such layer.
    """
    with torch.no_grad():
        walk = Walk(model, layers=layers)
        output = walk.run(inputs.clone())
        caught = {layer: walk.catch(layer) for layer in layers}
    return Seen({k: c.value for k, c in caught.items()}, {k: c.layout for k, c in caught.items()}, output)


def check_layers(layers: Any) -> tuple[str, ...]:
    """Return the names of layers as a tuple.

    Raises
    ------
    InputTypeError, InputError
        They are no sequence of names, there is none, or one is named twice.
    """
    if isinstance(layers, str):
        layers = (layers,)
    try:
        names = tuple(layers)
    except TypeError:
        raise InputTypeError(f"layers must be a sequence of names, got {type(layers).__name__}") from None
    if not all(isinstance(name, str) and name for name in names):
        raise InputTypeError(f"layers must be names of layers, got {list(names)!r}")
    if not names or len(set(names)) != len(names):
        raise InputError(f"layers must name at least one layer, none of them twice, got {list(names)!r}")
    return names


def first_layer(model: nn.Module, inputs: Tensor) -> str:
    """Return the end of the first layer: the last rectifier or max pool before the second convolution.

    Where there is none before it, the first rectifier of all.

    Raises
    ------
    ModelError
        The model has no rectifier: a layer must be named.
    """
    sites = _sites(model, inputs)
    filters = [i for i, site in enumerate(sites) if site.kind in ("conv", "linear")]
    end = filters[1] if len(filters) > 1 else len(sites)
    found = [site.name for site in sites[:end] if site.kind in ("rectifier", "max_pool")]
    found = found[-1:] or [site.name for site in sites if site.kind == "rectifier"][:1]
    if not found:
        raise ModelError(f"{type(model).__name__} has no rectifier to take for its first layer: name the layers")
    return found[0]


def before_classifier(model: nn.Module, inputs: Tensor) -> str:
    """Return what the classifier (the last linear layer, else the last convolution) works on: the layer before it.

    Raises
    ------
    ModelError
        There is no layer before it: the layers must be named.
    """
    sites = _sites(model, inputs)
    last = _last(sites, "linear") or _last(sites, "conv") or 0
    found = [site.name for site in sites[:last] if site.kind not in _PASSING and site.output_shape is not None]
    if not found:
        raise ModelError(f"{type(model).__name__} has no layer before its classifier: name the layers")
    return found[-1]


def last_linear(model: nn.Module, inputs: Tensor) -> str:
    """Return the last linear layer before the classifier, ``fc7`` of ZFNet; without one, what the classifier works on.

    Raises
    ------
    ModelError
        As `before_classifier`.
    """
    found = [s.name for s in _sites(model, inputs) if s.kind == "linear" and len(s.output_shape or ()) == 2]
    return found[-2] if len(found) > 1 else before_classifier(model, inputs)


def top_maps(model: nn.Module, inputs: Tensor, *, pooled: bool) -> str:
    """Return the top convolution layer: the last rectifier (or max pool) that works on maps, else the last convolution.

    Parameters
    ----------
    model, inputs
        The model and an input for it.
    pooled
        Whether a max pool after the rectifier belongs to the layer.

    Raises
    ------
    ModelError
        No layer has maps: it must be named.
    """
    sites = [s for s in _sites(model, inputs) if len(s.output_shape or ()) == 4 and s.layout == "NCHW"]
    convolution = _last(sites, "conv")
    if convolution is None:
        raise ModelError(f"{type(model).__name__} has no convolution: name the layer")
    kinds = ("rectifier", "max_pool") if pooled else ("rectifier",)
    found = [site.name for site in sites if site.kind in kinds]
    return found[-1] if found else sites[convolution].name


def _sites(model: nn.Module, inputs: Tensor) -> list[Site]:
    found: Inspection = attribkit.inspect(model, inputs[:1])
    return found.sites


def _last(sites: Sequence[Site], kind: str) -> int | None:
    return next((i for i in reversed(range(len(sites))) if sites[i].kind == kind), None)
