"""Models by name, each with the preprocessing that belongs to it.

`load_model` dispatches to the loader that a plugin registered for the name's prefix; the default ones are gathered
here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import timm
from torch import nn

from attribkit.errors import InputTypeError, ModelError, PluginError, UnknownNameError, did_you_mean
from attribkit.models._zfnet import zfnet
from attribkit.models.building import LoadedModel, Weights, build, class_option, count_classes, described, guarded, near
from attribkit.models.factory import FACTORY, load_factory
from attribkit.models.packaged import SHIPPED, Shipped, find_packaged
from attribkit.models.torchvision_models import load_torchvision

__all__ = ["LoadedModel", "load_factory", "load_model", "load_timm", "load_torchvision", "load_zfnet"]


def load_model(spec: str, weights: Weights = None) -> LoadedModel:
    """Load a model by name, with its preprocessing, in eval mode.

    Parameters
    ----------
    spec
        - ``"zfnet"``: the paper's network; ``"zfnet-fashion"``: the one whose weights come with the package.
        - ``"timm/NAME"``: any of ``timm.list_models()``, with preprocessing by the model's own data config.
        - ``"torchvision/NAME"``: any classifier or segmentation network of ``torchvision.models.list_models()``.
        - ``"run/DIR"``: the network that `attribkit train` left in the folder DIR.
        - ``"PREFIX/NAME"`` for a prefix that a plugin registered.
        - ``"MODULE:FACTORY"``: imports MODULE (from the current directory too) and calls FACTORY without arguments for
          an ``nn.Module``. **This runs that module's code.** The model may bear a ``pretrained_cfg`` (a dictionary, as
          timm's models do) with input_size, mean, std, …; without mean and std its input is in [0, 1].
    weights
        - None: weights that need no download where there are some (``timm/tf_efficientnet_lite0`` with the
          ``imagenet`` extra), else random ones.
        - A file, ``.safetensors`` or what ``torch.load(weights_only=True)`` reads; code in a file is never executed. A
          classifier with another number of classes than the model's default is taken over.
        - ``"random"``: torch's own initialisation.
        - ``"pretrained"``: the default weights of timm or torchvision, from their cache or by download; for torchvision
          also a weights name such as ``"DEFAULT"`` or ``"IMAGENET1K_V1"``.

    Returns
    -------
    LoadedModel
        The model, its preprocessing and class names.

    Raises
    ------
    UnknownNameError
        If there is no such model; the message suggests the nearest names.
    ModelError
        If the model cannot be built, or is of a kind that does not take one photograph.
    CheckpointError
        If the weights are unreadable, unsafe or do not fit.
    PluginError
        If a plugin's loader cannot be imported or returns something else.
    """
    from attribkit import plugins

    if not isinstance(spec, str):
        raise InputTypeError(
            f"load_model takes a model's name, got {type(spec).__name__}; a built model needs no loading"
        )
    entries = plugins.manager().models
    prefix, slash, name = spec.partition("/")
    if not slash and spec in SHIPPED and "zfnet" in entries:
        prefix, name = "zfnet", spec
    if prefix not in entries:
        if not slash and FACTORY.fullmatch(spec):
            return load_factory(spec, weights)
        raise UnknownNameError(f"unknown model {spec!r}: {suggestion(spec, entries)}")
    loaded = entries[prefix].load()(name, weights=weights)
    if not isinstance(loaded, LoadedModel):
        raise PluginError(
            f"the loader of {prefix!r} returned a {type(loaded).__name__} for {spec!r}, not a LoadedModel"
        )
    return loaded


def load_zfnet(name: str = "", weights: Weights = None) -> LoadedModel:
    """Load ZFNet: ``""`` for the paper's network, or a shipped variant (``"zfnet-fashion"`` or ``"fashion"``)."""
    variant = name if not name or name.startswith("zfnet") else f"zfnet-{name}"
    if variant in ("", "zfnet"):
        model, source = build(lambda n: zfnet(**class_option(n)), "zfnet", weights)
        return described("zfnet", model, source)
    if variant not in SHIPPED:
        raise UnknownNameError(f"unknown model {variant!r}: {did_you_mean(variant, ['zfnet', *SHIPPED])}")
    row = SHIPPED[variant]
    if row is None:
        raise ModelError(
            f"{variant}: its weights do not come with this version of attribkit; use zfnet with weights=FILE"
        )
    return _load_shipped(variant, row, weights)


def load_timm(name: str, weights: Weights = None) -> LoadedModel:
    """Load one of timm's models, with preprocessing by its own data config; see `load_model`."""
    full = f"timm/{name}"
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise UnknownNameError(f"unknown model {full!r}: {near('timm', name, timm.list_models())}")
    if tag:
        tags = timm.list_models(f"{architecture}.*", include_tags=True)
        if name not in tags:
            hint = near("timm", name, tags)
            raise UnknownNameError(f"unknown weights tag {tag!r} of timm/{architecture}: {hint}")

    def create(num_classes: int | None, pretrained: bool = False) -> nn.Module:
        built: nn.Module = timm.create_model(name, pretrained=pretrained, **class_option(num_classes))
        return built

    packaged = find_packaged(name) if weights is None else None
    if packaged is not None:
        path, source, row = packaged
        model, _ = build(create, full, path, rename=row.rename)
    elif weights == "pretrained":
        model = guarded(full, lambda: create(None, pretrained=True), "get the pretrained weights of")
        source = "timm's pretrained weights"
    else:
        model, source = build(create, full, weights, names=("random", "pretrained"))
    return described(full, model, source)


def _load_shipped(name: str, row: Shipped, weights: Weights) -> LoadedModel:
    def create(num_classes: int | None) -> Any:
        return zfnet(**{**row.options, **class_option(num_classes)})

    built, source = build(create, name, row.path if weights is None else weights)
    model: Any = built
    overlay = {"input_size": (model.in_chans, *model.img_size), **row.data_config}
    model.pretrained_cfg = model.default_cfg = {**model.pretrained_cfg, **overlay}
    labels = list(row.labels) if len(row.labels) == count_classes(model) else None
    return described(name, model, "shipped with attribkit" if weights is None else source, labels)


def suggestion(spec: str, prefixes: Mapping[str, Any]) -> str:
    """Return what an unknown spec might have meant."""
    import torchvision

    from attribkit.training.runs import is_run

    if "run" in prefixes and is_run(spec):
        return f"did you mean {f'run/{spec}'!r}?"
    if "/" in spec:
        forms = ", ".join(
            f"{prefix}/{'DIR' if prefix == 'run' else 'NAME'}" for prefix in prefixes if prefix != "zfnet"
        )
        return f"no such prefix; give zfnet, {forms} or MODULE:FACTORY"
    sources = {"timm": timm.list_models(), "torchvision": torchvision.models.list_models()}
    same = [f"{prefix}/{spec}" for prefix, names in sources.items() if spec in names and prefix in prefixes]
    if same:
        return "did you mean " + " or ".join(map(repr, same)) + "?"
    known = ["zfnet", *SHIPPED, *prefixes, *(f"{prefix}/{name}" for prefix, names in sources.items() for name in names)]
    return did_you_mean(spec, known)
