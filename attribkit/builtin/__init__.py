"""The default plugin: the methods and model sources that come with attribkit, through the hooks any plugin uses."""

from __future__ import annotations

from collections.abc import Callable

from attribkit.hookspecs import hookimpl

_METHODS = {
    "gradient": ("Gradient", "The score's derivative at each pixel (Simonyan et al. 2014)"),
    "guided_backprop": ("GuidedBackprop", "Backprop that also rectifies the signal (Springenberg et al. 2015)"),
    "deconvnet": (
        "Deconvnet",
        "The deconvolutional network: rectified signal, unpooling through switches (Zeiler & Fergus 2014)",
    ),
    "occlusion": ("Occlusion", "Score drop when a grey square covers each place (Zeiler & Fergus 2014)"),
}


@hookimpl
def attribkit_methods(register: Callable[..., None]) -> None:
    """Register the four default methods, each in the module of its name."""
    for name, (class_name, summary) in _METHODS.items():
        register(name, f"{__name__}.{name}:{class_name}", summary=summary)


@hookimpl
def attribkit_models(register: Callable[..., None]) -> None:
    """Register the model sources; their loaders import torch, timm and torchvision."""
    for prefix in ("zfnet", "timm", "torchvision"):
        register(prefix, f"attribkit.models.loading:load_{prefix}")
    register("run", "attribkit.training.runs:load_run")
