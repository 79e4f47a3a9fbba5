"""What the methods need of a layer: its activations, the score's gradient there, and which layer is the default."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import torch

import attribkit as ak
from attribkit.errors import InputError


@dataclass
class Maps:
    """A layer's feature maps and the score's gradient there.

    Attributes
    ----------
    name : str
        The layer; empty: the image itself.
    activations, gradients : Tensor [N, K, h, w]
    """

    name: str
    activations: torch.Tensor
    gradients: torch.Tensor


class _Tap(ak.InverseLayer):
    """Notes the output and the signal there, and lets nothing through: what lies below is of no interest."""

    needs = frozenset({"output"})
    signal_only = True
    observer = True

    def __init__(self):
        self.output = self.signal = None

    def carry(self, signal, site):
        """Return no signal."""
        self.output, self.signal = site.output, signal
        return (None,) * len(site.input_shapes)


class _Tapped(ak.InverseMethod):
    """The plain gradient with one tap."""

    def __init__(self, layer, tap):
        self.inverse_layers = {re.compile(re.escape(layer)): tap}


class _Layout(ak.Method):
    """No method: asking for a unit of a layer tells the layer's layout."""

    name = "layout_of_a_layer"
    summary = "Nothing"

    def attribute(self, model, inputs, target, **options):
        """Return zeros."""
        return torch.zeros_like(inputs)


def maps_at(model, inputs, target, layer=None):
    """Return the feature maps of a layer and the target's gradient there.

    Parameters
    ----------
    model, inputs, target
        As for `attribkit.Method.attribute`.
    layer
        The layer's name; None: the default, see `default_layer`.

    Raises
    ------
    InputError
        The layer has no map, or lies above the unit that is the target.
    """
    name, layout = default_layer(model, inputs, target) if layer is None else (layer, None)
    if not name:
        x = inputs.detach().requires_grad_()
        return Maps("", x.detach(), torch.autograd.grad(target.scores(model, x).sum(), x)[0])
    if layout is None:
        layout = _layout_of(model, inputs, target, name)
    tap = _Tap()
    _Tapped(name, tap).attribute(model, inputs, target)
    if tap.output is None:  # the score does not depend on the layer
        empty = inputs.new_zeros(len(inputs), 1, 1, 1)
        return Maps(name, empty, empty)
    found = [as_maps(tensor, layout, model, inputs, name) for tensor in (tap.output, tap.signal)]
    return Maps(name, *found)


def _layout_of(model, inputs, target, layer):
    """Return a layer's layout as the front door finds it out for a unit."""
    one = torch.zeros(1, dtype=torch.long, device=inputs.device)
    kwargs = target.kwargs_for(one)
    unit = ak.Unit(layer, 0, "all")
    return ak.attribute(model, inputs[:1], _Layout(), unit, forward_kwargs=kwargs).target.layout


def as_maps(value, layout, model, inputs, layer):
    """Return a layer's output as maps [N, K, h, w], whatever its layout; class and register tokens are left out.

    Raises
    ------
    InputError
        It has no rows and columns.
    """
    if layout == "NCHW":
        return value
    if layout == "NHWC":
        return value.permute(0, 3, 1, 2)
    grid = _token_grid(value.shape[1], model, inputs) if layout == "NTC" else None
    if grid is None:
        raise InputError(f"layer {layer!r} has output {tuple(value.shape)} ({layout}), which is no map")
    prefix, rows, columns = grid
    return value[:, prefix:].transpose(1, 2).unflatten(2, (rows, columns))


def _token_grid(tokens, model, inputs):
    """Return how many tokens precede the map's, and its rows and columns; None where that is not known.

    The map has the image's proportions: rows / columns = height / width.
    """
    declared = getattr(model, "num_prefix_tokens", None)
    height, width = inputs.shape[-2:]
    for prefix in (declared,) if isinstance(declared, int) else (0, 1, 2):  # a class and a distillation token
        count = tokens - prefix
        rows = math.isqrt(max(count, 0) * height // width)
        for r in (rows, rows + 1):
            if r > 0 and count % r == 0 and r * width == count // r * height:
                return prefix, r, count // r
    return None


def default_layer(model, inputs, target):
    """Return the last spatial map's layer on the way to the target, and its layout; an empty name: the image itself.

    It is the last operation before the head whose output has rows and columns, average pools aside. Where that is a row
    of tokens, it is the norm before the last attention: after it a class token no longer looks at the others.
    """
    listing = ak.inspect(model, inputs[:1])
    sites = listing.sites
    if target.layer is not None:
        place = {name: i for i, name in enumerate(listing.layers)}
        sites = [s for s in sites if place.get(s.name, len(place)) <= place.get(target.layer, len(place))]
    maps = [s for s in sites if _is_map(s, model, inputs)]
    if not maps:
        return "", None
    last = maps[-1]
    if last.layout == "NTC":
        looks = [i for i, s in enumerate(sites) if s.kind == "attention" or "softmax" in s.op.lower()]
        norms = [s for s in sites[: looks[-1]] if s in maps and s.kind == "norm"] if looks else []
        last = norms[-1] if norms else last
    return last.name, last.layout


def _is_map(site, model, inputs):
    shape, layout = site.output_shape, site.layout
    if shape is None or shape[0] != 1 or site.kind in ("avg_pool", "mean") or site.name == "":
        return False
    if layout == "NTC":
        grid = _token_grid(shape[1], model, inputs)
        return grid is not None and grid[1] * grid[2] > 1
    return (layout == "NCHW" and shape[2] * shape[3] > 1) or (layout == "NHWC" and shape[1] * shape[2] > 1)
