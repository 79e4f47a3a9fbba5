"""Captum's and Zennit's methods behind thin adapters, so that the kit can be run on them."""

from __future__ import annotations

import itertools
import warnings
from functools import partial

import torch
from captum import attr as captum
from torch import nn
from zennit import attribution as zennit
from zennit import composites
from zennit.attribution import occlude_independent

import attribkit as ak
from attribkit.targets import ClassTarget


class Scores(nn.Module):
    """A model whose only output is the target's score; for targets that the other library does not know."""

    def __init__(self, model, target):
        super().__init__()
        self.model, self.target = model, target

    def forward(self, x):
        return self.target.scores(self.model, x)[:, None]


def native(model, target):
    """Return the model and the classes as the other library takes them."""
    if isinstance(target, ClassTarget):
        return model, target.classes
    return Scores(model, target), torch.zeros(target.size, dtype=torch.long)


class _Captum(ak.Method):
    made = None
    options_of_call: dict = {}

    def attribute(self, model, inputs, target, **options):
        model, classes = native(model, target)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return self.made(model).attribute(inputs, target=classes, **self.options_of_call)


class CaptumSaliency(_Captum):
    name = "captum.saliency"
    summary = "captum.attr.Saliency(abs=False)"
    tags = {"gradient", "inverse", "signed", "deterministic"}
    made = captum.Saliency
    options_of_call = {"abs": False}


class CaptumGuidedBackprop(_Captum):
    name = "captum.guided_backprop"
    summary = "captum.attr.GuidedBackprop"
    tags = {"guided_backprop", "inverse", "signed", "deterministic"}
    made = captum.GuidedBackprop


class CaptumDeconvolution(_Captum):
    name = "captum.deconvolution"
    summary = "captum.attr.Deconvolution"
    tags = {"deconvnet", "inverse", "signed", "deterministic"}
    made = captum.Deconvolution


class CaptumOcclusion(ak.Method):
    name = "captum.occlusion"
    summary = "captum.attr.Occlusion"
    tags = {"occlusion", "perturbation", "signed", "deterministic"}

    def attribute(self, model, inputs, target, *, window=None, stride=None, fill=0.0):
        model, classes = native(model, target)
        if window is None:
            side = -(-min(inputs.shape[-2:]) // 7)
            window = (side, side)
        stride = stride or tuple(max(1, side // 2) for side in window)
        found = None
        for place in itertools.product(*map(_apart, inputs.shape[-2:], window, stride)):
            part = inputs[(..., *place)]
            sides = tuple(map(min, window, part.shape[-2:]))  # larger ones are refused
            drops = captum.Occlusion(Within(model, inputs, place)).attribute(
                part,
                (part.shape[1], *sides),
                strides=(part.shape[1], *map(min, stride, sides)),
                baselines=fill,
                target=classes,
            )
            found = torch.zeros_like(inputs, dtype=drops.dtype) if found is None else found  # in Captum's own dtype
            found[(..., *place)] = drops
        return found


class Within(nn.Module):
    """A model of a part of an image, whose rest stays as it is."""

    def __init__(self, model, inputs, place):
        super().__init__()
        self.model, self.inputs, self.place = model, inputs, place

    def forward(self, part):
        x = self.inputs.clone()
        x[(..., *self.place)] = part
        return self.model(x)


def _apart(size, side, step):
    """Return the windows along a dimension where they leave gaps, which Captum refuses; else all of it as one part."""
    if step <= side:
        return [slice(0, size)]
    return [slice(start, min(start + side, size)) for start in range(0, size - side + step, step) if start < size]


class _Zennit(ak.Method):
    composite = None

    def attribute(self, model, inputs, target, **options):
        model, classes = native(model, target)

        def one_hot(output):
            return torch.nn.functional.one_hot(classes, output.shape[1]).to(output)

        composite = self.composite() if self.composite is not None else None
        with zennit.Gradient(model=model, composite=composite) as attributor:
            return attributor(inputs, one_hot)[1]


class ZennitGradient(_Zennit):
    name = "zennit.gradient"
    summary = "zennit.attribution.Gradient"
    tags = {"gradient", "inverse", "signed", "deterministic"}


class ZennitGuidedBackprop(_Zennit):
    name = "zennit.guided_backprop"
    summary = "zennit.attribution.Gradient with composites.GuidedBackprop"
    tags = {"guided_backprop", "inverse", "signed", "deterministic"}
    composite = composites.GuidedBackprop


class ZennitDeconvNet(_Zennit):
    name = "zennit.deconvnet"
    summary = "zennit.attribution.Gradient with composites.DeconvNet"
    tags = {"deconvnet", "inverse", "signed", "deterministic"}
    composite = composites.DeconvNet


class ZennitOcclusion(ak.Method):
    """Zennit's occlusion sums scores of images of which one window is hidden or shown: a definition of its own."""

    name = "zennit.occlusion"
    summary = "zennit.attribution.Occlusion"
    tags = {"perturbation", "signed", "deterministic", "linear_in_seed"}

    def attribute(self, model, inputs, target, *, window=2, stride=1):
        model, classes = native(model, target)

        def one_hot(output):
            return torch.nn.functional.one_hot(classes, output.shape[1]).to(output)

        hide = partial(occlude_independent, fill_fn=torch.zeros_like, invert=True)
        sizes = {"window": (window, window), "stride": (stride, stride), "occlusion_fn": hide}
        with zennit.Occlusion(model=model, **sizes) as attributor, torch.no_grad():
            return attributor(inputs, lambda output: output * one_hot(output))[1]


OTHERS = (
    CaptumSaliency,
    CaptumGuidedBackprop,
    CaptumDeconvolution,
    CaptumOcclusion,
    ZennitGradient,
    ZennitGuidedBackprop,
    ZennitDeconvNet,
    ZennitOcclusion,
)
