"""The default plugin: the methods and model sources that come with attribkit, through the hooks any plugin uses."""

from __future__ import annotations

from collections.abc import Callable

from attribkit.hookspecs import hookimpl

_ZEILER = "Zeiler & Fergus, Visualizing and Understanding Convolutional Networks, ECCV 2014"

_METHODS = {
    "gradient": (
        "Gradient",
        "The score's derivative at each pixel (Simonyan et al. 2014)",
        "Simonyan, Vedaldi & Zisserman, Deep Inside Convolutional Networks, ICLR 2014 workshop, §3",
    ),
    "guided_backprop": (
        "GuidedBackprop",
        "Backprop that also rectifies the signal (Springenberg et al. 2015)",
        "Springenberg et al., Striving for Simplicity: The All Convolutional Net, ICLR 2015 workshop, §3.4",
    ),
    "deconvnet": (
        "Deconvnet",
        "The deconvolutional network: rectified signal, unpooling through switches (Zeiler & Fergus 2014)",
        f"{_ZEILER}, §2.1",
    ),
    "occlusion": (
        "Occlusion",
        "Score drop when a grey square covers each place (Zeiler & Fergus 2014)",
        f"{_ZEILER}, §4.2",
    ),
}


@hookimpl
def attribkit_methods(register: Callable[..., None]) -> None:
    """Register the four default methods, each in the module of its name."""
    for name, (class_name, summary, source) in _METHODS.items():
        register(name, f"{__name__}.{name}:{class_name}", summary=summary, source=source)


@hookimpl
def attribkit_models(register: Callable[..., None]) -> None:
    """Register the model sources; their loaders import torch, timm and torchvision."""
    for prefix in ("zfnet", "timm", "torchvision"):
        register(prefix, f"attribkit.models.loading:load_{prefix}")
    register("run", "attribkit.training.runs:load_run")
