"""Captum called directly, on two samples of any network, with the defaults that the plugin makes written out."""

from __future__ import annotations

import copy
import warnings

import captum.attr as ca
import numpy as np
import torch
from captum.attr._utils.lrp_rules import EpsilonRule


def seeded(seed=0):
    """Seed what Captum draws from."""
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002


def grid(x, patches):
    """Return a mask of patches, the same number along both sides."""
    down, across = (torch.arange(length) * patches // length for length in x.shape[2:])
    return (down[:, None] * patches + across)[None, None]


def sliding(x):
    """Return Captum's arguments for a window of a seventh of the side and steps of half of it."""
    side = -(-min(x.shape[2:]) // 7)
    return {"sliding_window_shapes": (3, side, side), "strides": (3, max(1, side // 2), max(1, side // 2))}


def at_once(algorithm, options=lambda x: {}, layered=False):
    """Return a call on the whole batch."""

    def call(model, x, classes, layer):
        model = copy.deepcopy(model)
        made = algorithm(model, model.get_submodule(layer)) if layered else algorithm(model)
        return made.attribute(x.clone().requires_grad_(), target=classes, **options(x))

    return quiet(call)


def one_by_one(algorithm, options=lambda x: {}):
    """Return a call on each sample alone, all with the same draws."""

    def call(model, x, classes, layer):
        found = []
        for i in range(len(x)):
            seeded()
            sample = x[i : i + 1].clone().requires_grad_()
            found.append(algorithm(model).attribute(sample, target=classes[i : i + 1], **options(sample)))
        return torch.cat(found)

    return quiet(call)


def permuted(model, x, classes, layer):
    """Call Captum's permutation with the seed that is the default."""
    seeded()
    return ca.FeaturePermutation(model).attribute(x, target=classes, feature_mask=grid(x, 7))


def ruled(model, x, classes, layer):
    """Call Captum's LRP with its epsilon rule for layers that it has no rule for."""
    from captum.attr._core import lrp

    model = copy.deepcopy(model)
    for module in model.modules():
        has_rule = type(module) in (*lrp.SUPPORTED_LAYERS_WITH_RULES, *lrp.SUPPORTED_NON_LINEAR_LAYERS)
        if not list(module.children()) and not has_rule:
            module.rule = EpsilonRule()
    return ca.LRP(model).attribute(x.clone().requires_grad_(), target=classes)


def quiet(call):
    """Return the call without Captum's warnings, and its generators put back."""

    def silent(*arguments):
        state = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return call(*arguments).detach().double()
        finally:
            torch.set_rng_state(state[0])
            np.random.set_state(state[1])  # noqa: NPY002

    return silent


def black(x):
    """Return two baselines of zeros."""
    return {"baselines": torch.zeros(2, *x.shape[1:], dtype=x.dtype)}


def sampled(samples):
    """Return the call of Shapley value sampling with this many orders."""
    return one_by_one(ca.ShapleyValueSampling, lambda x: {"feature_mask": grid(x, 4), "n_samples": samples})


DIRECT = {
    "saliency": at_once(ca.Saliency),
    "input_x_gradient": at_once(ca.InputXGradient),
    "integrated_gradients": at_once(ca.IntegratedGradients, lambda x: {"internal_batch_size": 16}),
    "gradient_shap": one_by_one(ca.GradientShap, black),
    "deep_lift": at_once(ca.DeepLift),
    "deep_lift_shap": at_once(ca.DeepLiftShap, black),
    "guided_backprop": at_once(ca.GuidedBackprop),
    "deconvolution": at_once(ca.Deconvolution),
    "guided_grad_cam": at_once(ca.GuidedGradCam, layered=True),
    "lrp": quiet(ruled),
    "noise_tunnel": one_by_one(lambda model: ca.NoiseTunnel(ca.Saliency(model))),
    "occlusion": at_once(ca.Occlusion, sliding),
    "feature_ablation": at_once(ca.FeatureAblation, lambda x: {"feature_mask": grid(x, 7)}),
    "feature_permutation": quiet(permuted),
    "shapley_value_sampling": sampled(25),
    "shapley_values": at_once(ca.ShapleyValues, lambda x: {"feature_mask": grid(x, 2)}),
    "lime": one_by_one(ca.Lime, lambda x: {"feature_mask": grid(x, 4)}),
    "kernel_shap": one_by_one(ca.KernelShap, lambda x: {"feature_mask": grid(x, 4)}),
}
