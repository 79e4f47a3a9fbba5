"""Zennit's maps, to compare with: its composites and canonizers on torchvision's models."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.densenet import DenseNet
from zennit import composites, rules
from zennit.attribution import Gradient
from zennit.canonizers import AttributeCanonizer, NamedMergeBatchNorm, SequentialMergeBatchNorm
from zennit.torchvision import ResNetBasicBlockCanonizer, ResNetBottleneckCanonizer
from zennit.types import Linear

NAMES = ("lrp_epsilon", "lrp_epsilon_plus_flat", "lrp_epsilon_gamma_box", "lrp_epsilon_alpha2_beta1")


class _WithoutEps:
    """Merges batch norms exactly.

    Zennit leaves a merged batch norm with mean 0, variance 1 and its own eps, so that it still divides by √(1 + eps):
    its forward pass is not the model's, by 5e-6 for each batch norm.
    """

    def register(self, linears, batch_norm):
        super().register(linears, batch_norm)
        self.eps, batch_norm.eps = batch_norm.eps, 0.0

    def remove(self):
        super().remove()
        self.batch_norm.eps = self.eps


class ExactSequential(_WithoutEps, SequentialMergeBatchNorm):
    """Zennit's canonizer for batch norms right after a linear layer in the tree of modules."""


class ExactNamed(_WithoutEps, NamedMergeBatchNorm):
    """Zennit's canonizer for batch norms named one by one."""


class DenseNetCanonizer(AttributeCanonizer):
    """Makes modules of the last ReLU and average pool, which torchvision's DenseNet calls as functions."""

    def __init__(self):
        super().__init__(self._attributes)

    @classmethod
    def _attributes(cls, name, module):
        if not isinstance(module, DenseNet):
            return None
        return {
            "forward": cls.forward.__get__(module),
            "canonizer_relu": nn.ReLU(),
            "canonizer_pool": nn.AdaptiveAvgPool2d(1),
        }

    @staticmethod
    def forward(self, x):
        features = self.canonizer_relu(self.features(x))
        return self.classifier(self.canonizer_pool(features).flatten(1))


def canonizers(model, exact):
    """Return the canonizers for a model; ``exact``: batch norms are merged without what Zennit leaves of them."""
    if isinstance(model, DenseNet):
        # the sequential one takes a block's last convolution and the next block's norm for a pair, and fails
        pairs = [(["features.conv0"], "features.norm0")]
        pairs += [
            ([f"{n}.conv1"], f"{n}.norm2")
            for n, _ in model.named_modules()
            if n.split(".")[-1].startswith("denselayer")
        ]
        return [(ExactNamed if exact else NamedMergeBatchNorm)(pairs), DenseNetCanonizer()]
    merge = (ExactSequential if exact else SequentialMergeBatchNorm)()
    return [merge, ResNetBottleneckCanonizer(), ResNetBasicBlockCanonizer()]


def composite(name, inputs, canon):
    """Return Zennit's composite of a method's name."""
    if name == "lrp_epsilon":
        layers = [*composites.layer_map_base(), (Linear, rules.Epsilon())]
        return composites.LayerMapComposite(layers, canonizers=canon)
    if name == "lrp_epsilon_plus_flat":
        return composites.EpsilonPlusFlat(canonizers=canon)
    if name == "lrp_epsilon_gamma_box":
        low, high = inputs.amin(), inputs.amax()
        return composites.EpsilonGammaBox(low=low, high=high, canonizers=canon)
    return composites.EpsilonAlpha2Beta1(canonizers=canon)


def zennit_map(model, inputs, classes, name, *, exact=True):
    """Return Zennit's relevance, the class scores being what is shared out."""
    with torch.no_grad():
        chosen = F.one_hot(classes, model(inputs).shape[1]).to(inputs)
    x = inputs.clone()
    with Gradient(model, composite(name, inputs, canonizers(model, exact))) as attributor:
        return attributor(x, lambda scores: scores * chosen)[1].detach()


def with_statistics(model, seed=0):
    """Return the model in eval mode with batch norms that do something."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, least, most in (
                (module.running_mean, -0.1, 0.1),
                (module.running_var, 0.5, 1.5),
                (module.weight.data, 0.5, 1.5),
                (module.bias.data, -0.1, 0.1),
            ):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * (most - least) + least)
    return model.eval()
