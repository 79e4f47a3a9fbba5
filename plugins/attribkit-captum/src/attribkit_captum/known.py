"""What is known of Captum's algorithms beyond their signatures: a line on each, its paper, and what it cannot do.

An algorithm that is not listed, of a release newer than this plugin, is used all the same, with the most careful of the
settings: a seed, one sample at a time, on its own copy of the model's weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Known:
    """What is known of one algorithm.

    Attributes
    ----------
    summary, source : str
        A line on what it does, and where it was published.
    tags : frozenset of str
        What the conformance kit may expect.
    random : bool
        Whether it draws from the global random generators.
    together : bool
        Whether a batch goes through it at once; else each sample goes alone, so that all of them see the same draws.
    rewrites : bool
        Whether it may write into the model's weights, so that it needs its own.
    once : bool
        Whether it wants every module called once in a forward pass.
    patches : int
        How many patches a feature mask has along each side of the image, at most.
    expected_failures : mapping of str to str
        Checks that it cannot pass, each with the reason.
    """

    summary: str
    source: str
    tags: frozenset[str] = frozenset()
    random: bool = True
    together: bool = False
    rewrites: bool = True
    once: bool = True
    patches: int = 4
    expected_failures: Mapping[str, str] = field(default_factory=dict)


def known(name: str, sentence: str = "") -> Known:
    """Return what is known of an algorithm by its class's name.

    Parameters
    ----------
    name
        The class's name.
    sentence
        The first sentence of its docstring: the summary of an algorithm that is not listed.
    """
    return KNOWN.get(name) or Known(sentence or f"Captum's {name}", f"captum.attr.{name}")


_SIGNED = frozenset({"deterministic", "signed"})
_LINEAR = _SIGNED | {"linear_in_seed"}

_GUIDED = "Springenberg et al., Striving for Simplicity, ICLR 2015 workshop, §3.4"
_LUNDBERG = "Lundberg & Lee, A Unified Approach to Interpreting Model Predictions, NeurIPS 2017"

#: Why checks fail: faults of Captum's, or what the algorithm is by its nature.
_MODULES_ONLY = {"check_writings": "Captum changes the derivative of modules such as nn.ReLU; functions keep theirs"}
_FLOAT32 = {"check_precision": "Captum sums up or fits in float32, whatever the inputs' dtype"}
_OF_THE_BATCH = "a patch is exchanged for that of another image in the batch"

KNOWN: dict[str, Known] = {
    "Deconvolution": Known(
        "The gradient, each nn.ReLU passing the positive part of the signal (Zeiler & Fergus 2014)",
        "Zeiler & Fergus, Visualizing and Understanding Convolutional Networks, ECCV 2014, §2.1",
        frozenset({"deterministic", "homogeneous"}),
        random=False,
        together=True,
        rewrites=False,
        once=False,
        expected_failures=_MODULES_ONLY,
    ),
    "DeepLift": Known(
        "Differences from a baseline carried back, the rescale rule (Shrikumar et al. 2017)",
        "Shrikumar et al., Learning Important Features Through Propagating Activation Differences, ICML 2017, §3",
        _LINEAR,
        random=False,
        together=True,
        rewrites=False,
        expected_failures=_MODULES_ONLY,
    ),
    "DeepLiftShap": Known(
        "DeepLIFT, the mean over several baselines (Lundberg & Lee 2017)",
        f"{_LUNDBERG}, §4.2",
        _LINEAR,
        random=False,
        together=True,
        rewrites=False,
        expected_failures=_MODULES_ONLY,
    ),
    "FeatureAblation": Known(
        "Score drop when a patch is replaced by the baseline",
        "Kokhlikyan et al., Captum, arXiv:2009.07896",
        _LINEAR | {"perturbation"},
        random=False,
        together=True,
        patches=7,
    ),
    "FeaturePermutation": Known(
        "Score drop when a patch is exchanged between the images of the batch (Breiman 2001)",
        "Breiman, Random Forests, Machine Learning 45, 2001, §10",
        _LINEAR,
        together=True,
        patches=7,
        expected_failures=dict.fromkeys(
            ("check_batch_independence", "check_batch_permutation", "check_current_input", "check_front_door"),
            _OF_THE_BATCH,
        ),
    ),
    "GradientShap": Known(
        "Gradients at random places between baselines and the image (Lundberg & Lee 2017)",
        f"{_LUNDBERG}; as expected gradients, Erion et al. 2021, eq. 3",
        _LINEAR,
    ),
    "GuidedBackprop": Known(
        "The gradient, the signal rectified at each nn.ReLU (Springenberg et al. 2015)",
        _GUIDED,
        frozenset({"deterministic", "homogeneous"}),
        random=False,
        together=True,
        rewrites=False,
        once=False,
        expected_failures=_MODULES_ONLY,
    ),
    "GuidedGradCam": Known(
        "Guided backprop times the enlarged Grad-CAM (Selvaraju et al. 2017)",
        "Selvaraju et al., Grad-CAM, ICCV 2017, §3.2",
        frozenset({"deterministic"}),
        random=False,
        together=True,
        rewrites=False,
        once=False,
        expected_failures={
            **_MODULES_ONLY,
            "check_right_unit": "the layer looked at lies before a unit's own; of a class it may be the last",
            "check_fault_leaves_nothing": "Captum answers an exception while it enlarges the map with an empty tensor",
        },
    ),
    "InputXGradient": Known(
        "Input times gradient (Shrikumar et al. 2016)",
        "Shrikumar et al., Not Just a Black Box, arXiv:1605.01713, 2016",
        _LINEAR | {"thread_safe"},
        random=False,
        together=True,
    ),
    "IntegratedGradients": Known(
        "The gradient's integral on the way from a baseline (Sundararajan et al. 2017)",
        "Sundararajan, Taly & Yan, Axiomatic Attribution for Deep Networks, ICML 2017, eq. 1 and 3",
        _LINEAR | {"thread_safe"},
        random=False,
        together=True,
    ),
    "KernelShap": Known(
        "Shapley values of patches from a weighted linear fit to random subsets (Lundberg & Lee 2017)",
        f"{_LUNDBERG}, §4.1",
        frozenset({"deterministic"}),
        expected_failures=_FLOAT32,
    ),
    "LRP": Known(
        "Layer-wise relevance propagation, the epsilon rule or each layer's own (Bach et al. 2015)",
        "Bach et al., On Pixel-Wise Explanations by Layer-Wise Relevance Propagation, PLOS ONE 2015, eq. 58",
        frozenset({"deterministic"}),
        random=False,
        together=True,
        expected_failures={"check_writings": "Captum's rules are for modules; functions keep their derivative"},
    ),
    "Lime": Known(
        "Coefficients of a sparse linear model fitted to images with patches left out (Ribeiro et al. 2016)",
        "Ribeiro, Singh & Guestrin, “Why Should I Trust You?”, KDD 2016, §3",
        frozenset({"deterministic"}),
        expected_failures=_FLOAT32,
    ),
    "NoiseTunnel": Known(
        "Another method's map, the mean or variance over noisy copies (Smilkov et al. 2017)",
        "Smilkov et al., SmoothGrad, arXiv:1706.03825, 2017, §3; Adebayo et al. 2018 (vargrad)",
        frozenset({"deterministic"}),
    ),
    "Occlusion": Known(
        "Score drop when a sliding window is replaced by the baseline (Zeiler & Fergus 2014)",
        "Zeiler & Fergus, Visualizing and Understanding Convolutional Networks, ECCV 2014, §4.2",
        _SIGNED | {"perturbation"},
        random=False,
        together=True,
        expected_failures=_FLOAT32,
    ),
    "Saliency": Known(
        "The gradient's absolute value (Simonyan et al. 2014)",
        "Simonyan, Vedaldi & Zisserman, Deep Inside Convolutional Networks, ICLR 2014 workshop, §3.1",
        frozenset({"deterministic", "homogeneous", "thread_safe"}),
        random=False,
        together=True,
    ),
    "ShapleyValueSampling": Known(
        "Shapley values of patches over random orders of revealing them (Castro et al. 2009)",
        "Castro, Gómez & Tejada, Polynomial Calculation of the Shapley Value Based on Sampling, 2009",
        _SIGNED,
        expected_failures=_FLOAT32,
    ),
    "ShapleyValues": Known(
        "Shapley values of patches over every order of revealing them (Shapley 1953)",
        "Shapley, A Value for n-Person Games, 1953",
        _SIGNED | {"perturbation"},
        random=False,
        together=True,
        patches=2,
        expected_failures=_FLOAT32,
    ),
}
