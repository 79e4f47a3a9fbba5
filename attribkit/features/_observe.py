"""What a model says at some of its layers, and which layers are asked when none are named."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import attribkit
from attribkit.engine.inspection import Inspection
from attribkit.engine.outputs import class_scores
from attribkit.engine.sites import Site
from attribkit.engine.state import pristine
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
    """Return the last fully connected layer before the classifier, ``fc7`` of ZFNet.

    One is a linear layer on vectors, or a convolution whose map is a single position, behind the last maps: squeezed
    channels inside a block are neither. Without one, what the classifier works on.

    Raises
    ------
    ModelError
        As `before_classifier`.
    """
    sites = _sites(model, inputs)
    behind = max((i for i, site in enumerate(sites) if _positions(site) > 1), default=-1) + 1
    found = [s.name for s in sites[behind:] if s.kind in ("linear", "conv")]
    return found[-2] if len(found) > 1 else before_classifier(model, inputs)


def top_maps(model: nn.Module, inputs: Tensor, *, pooled: bool) -> str:
    """Return the top layer that has maps, ``relu5`` or ``pool5`` of ZFNet.

    It is the last rectifier whose output has more than one position (rows and columns, or tokens). A later sum or
    concatenation with as many positions takes its place: there a block ends that has shortcuts or branches. It bears
    the name of the module that returns it, where one does. Without such a rectifier it is the last convolution.

    Parameters
    ----------
    model, inputs
        The model and an input for it.
    pooled
        Whether a max pool after it belongs to the layer.

    Raises
    ------
    ModelError
        No layer has maps: it must be named.
    """
    sites = _sites(model, inputs)
    maps = [site for site in sites if _positions(site) > 1]
    top = _last(maps, "rectifier")
    if top is None:
        convolutions = [s for s in maps if s.kind == "conv"] or [s for s in sites if s.kind == "conv"]
        if not convolutions:
            raise ModelError(f"{type(model).__name__} has no convolution: name the layer")
        return convolutions[-1].name
    joined = [s for s in maps[top:] if s.kind in ("sum", "concat") and _positions(s) == _positions(maps[top])]
    found = joined[-1] if joined else maps[top]
    if pooled:
        # of small inputs a pool may leave a single position of several
        pools = [site.name for site in sites[sites.index(found) :] if site.kind == "max_pool" and _narrows(site)]
        if pools:
            return pools[-1]
    return _returned_by(model, inputs, found) if joined else found.name


def _positions(site: Site) -> int:
    """Return at how many positions a site's output has its features; 0 where that is not known."""
    if site.layout is None or site.output_shape is None:
        return 0
    return math.prod(size for size, letter in zip(site.output_shape, site.layout, strict=True) if letter in "HWT")


def _narrows(pool: Site) -> bool:
    return pool.input_shape is not None and math.prod(pool.input_shape[2:]) > 1


def _returned_by(model: nn.Module, inputs: Tensor, site: Site) -> str:
    """Return the path of the module that returns a site's values, whatever their shape; else the site's name."""
    if not site.path:
        return site.name
    with pristine(model, inputs[:1]):
        seen = look(model, inputs[:1], [site.name, site.path])
    same = torch.equal(seen.vectors(site.name), seen.vectors(site.path)) and seen.layouts[site.path] is not None
    return site.path if same else site.name


def _sites(model: nn.Module, inputs: Tensor) -> list[Site]:
    found: Inspection = attribkit.inspect(model, inputs[:1])
    return found.sites


def _last(sites: Sequence[Site], kind: str) -> int | None:
    return next((i for i in reversed(range(len(sites))) if sites[i].kind == kind), None)
