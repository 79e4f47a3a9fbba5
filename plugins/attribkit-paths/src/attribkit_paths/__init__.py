"""The plugin: what comes of many gradients along a path or around an image. Nothing heavy is imported here."""

import attribkit as ak

requires_attribkit = ">=0.1,<1"

_METHODS = {
    "integrated_gradients": (
        "paths:IntegratedGradients",
        "The gradient's integral on the way from a baseline (Sundararajan et al. 2017)",
        "Sundararajan, Taly & Yan, Axiomatic Attribution for Deep Networks, ICML 2017, eq. 1 and 3",
    ),
    "expected_gradients": (
        "paths:ExpectedGradients",
        "Integrated gradients, the baseline drawn from a background (Erion et al. 2021)",
        "Erion et al., Improving Performance of Deep Learning Models with Axiomatic Attribution Priors, 2021, eq. 3",
    ),
    "input_x_gradient": (
        "paths:InputXGradient",
        "Input times gradient (Shrikumar et al. 2016)",
        "Shrikumar et al., Not Just a Black Box, arXiv:1605.01713, 2016",
    ),
    "smooth_grad": (
        "noise:SmoothGrad",
        "The mean gradient of noisy copies (Smilkov et al. 2017)",
        "Smilkov et al., SmoothGrad, arXiv:1706.03825, 2017, §3",
    ),
    "var_grad": (
        "noise:VarGrad",
        "The variance of the gradients of noisy copies (Adebayo et al. 2018)",
        "Adebayo et al., Sanity Checks for Saliency Maps, NeurIPS 2018, Appendix A",
    ),
}


@ak.hookimpl
def attribkit_methods(register):
    """Register the methods; a module is imported when one of its methods is first used."""
    for name, (place, summary, source) in _METHODS.items():
        register(name, f"attribkit_paths.{place}", summary=summary, source=source)
