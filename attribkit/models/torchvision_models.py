"""Loading ``torchvision/NAME``: torchvision's models with the transforms of their weights."""

from __future__ import annotations

import inspect
import os
import re
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn
from torchvision.transforms import _presets as presets

from attribkit.errors import CheckpointError, ModelError, UnknownNameError, did_you_mean
from attribkit.models.building import LoadedModel, Weights, class_option, count_classes, guarded, near
from attribkit.models.checkpoint import State, load_weights, other_classes, read_checkpoint, without_prefixes
from attribkit.models.labels import labels_for
from attribkit.models.preprocess import Preprocess, find_normalization
from attribkit.registry import one_line

__all__ = ["load_torchvision"]


def load_torchvision(name: str, weights: Weights = None) -> LoadedModel:
    """Load one of torchvision's classifiers or segmentation networks.

    Preprocessing is the weights' own transform: of the named weights, of those whose download has the file's name, or,
    for random weights and other files, of the model's default ones.

    Parameters
    ----------
    name
        One of ``torchvision.models.list_models()``.
    weights
        None or ``"random"``; the name of a weights entry (``"DEFAULT"``, ``"IMAGENET1K_V1"``, ``"pretrained"``), which
        comes from torch's cache or is downloaded; or a checkpoint file.

    Raises
    ------
    UnknownNameError
        If there is no such model.
    ModelError
        If it takes no single photograph (video, optical flow) or returns boxes (detection).
    CheckpointError
        If the weights cannot be had or do not fit.
    """
    full = f"torchvision/{name}"
    known = torchvision.models.list_models()
    if name not in known:
        raise UnknownNameError(f"unknown model {full!r}: {near('torchvision', name, known)}")
    entries = torchvision.models.get_model_weights(name)
    preset = entries.DEFAULT.transforms()
    if not isinstance(preset, presets.ImageClassification | presets.SemanticSegmentation):
        kind = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(preset).__name__).lower()
        raise ModelError(f"{full} is for {kind}; only classifiers and segmentation networks can be loaded")
    entry = _entry(entries, weights)
    if weights is None or weights == "random":
        model, source = guarded(full, lambda: _create(name, None, None, None)), "random"
    else:
        state = _state(full, entries, entry, weights)
        model = guarded(full, lambda: _create(name, None, state, entry))
        state = without_prefixes(_present_names(state), model)
        classes = other_classes(model, state)
        if classes is not None:
            model = guarded(full, lambda: _create(name, classes, state, entry))
        load_weights(model, state, checkpoint=os.fspath(weights), name=full)
        source = Path(weights).name if entry is None or os.path.exists(weights) else f"torchvision {entry}"
    labels = labels_for(count_classes(model))
    if labels is None and entry is not None:
        labels = list(entry.meta.get("categories") or ()) or None
    return _described(full, model, source, (entry or entries.DEFAULT), entry is not None, labels)


def _described(
    full: str, model: nn.Module, source: str, entry: Any, own: bool, labels: list[str] | None
) -> LoadedModel:
    preset = entry.transforms()
    sides = list(getattr(preset, "crop_size", None) or preset.resize_size)
    height, width = sides * 2 if len(sides) == 1 else sides
    description = (
        f"transforms of {entry}{'' if own else ' (the default weights)'}: 3×{height}×{width},"
        f" {preset.interpolation.value}, resize {preset.resize_size[0]}, mean {tuple(preset.mean)},"
        f" std {tuple(preset.std)}"
    )
    preprocess = Preprocess(preset, 3, description)
    return LoadedModel(
        full, model.eval(), preprocess, find_normalization(preset, 3), labels, (3, height, width), source, description
    )


def _entry(entries: Any, weights: Weights) -> Any:
    """Return the weights entry that ``weights`` names, by its name or by the file name of its download."""
    if weights is None or weights == "random":
        return None
    name = os.fspath(weights)
    if os.path.exists(name):
        return next((entry for entry in entries if Path(entry.url).name == Path(name).name), None)
    name = "DEFAULT" if name == "pretrained" else name.removeprefix(f"{entries.__name__}.")
    return entries.__members__.get(name)


def _state(full: str, entries: Any, entry: Any, weights: str | os.PathLike[str]) -> State:
    if entry is None and not os.path.exists(weights) and not Path(weights).suffix:
        known = did_you_mean(os.fspath(weights), ["random", "pretrained", *entries.__members__])
        raise CheckpointError(f"weights {os.fspath(weights)!r} of {full}: neither a file nor a weights name: {known}")
    if entry is None or os.path.exists(weights):
        return read_checkpoint(weights)
    # As torch.hub.load_state_dict_from_url does and in its cache, but read without unpickling objects.
    cached = Path(torch.hub.get_dir(), "checkpoints", Path(entry.url).name)
    if not cached.exists():
        digest = re.search(r"-([0-9a-f]+)\.", cached.name)
        try:
            cached.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(entry.url, str(cached), digest[1] if digest else None)
        except Exception as error:
            raise CheckpointError(
                f"weights {entry} of {full} cannot be downloaded: {one_line(error)}; give a local file instead"
            ) from error
    return read_checkpoint(cached)


def _create(name: str, num_classes: int | None, state: State | None, entry: Any) -> nn.Module:
    """Build the model with random weights, shaped for ``state`` as its builder would for downloaded weights."""
    options: dict[str, Any] = class_option(num_classes)
    if "weights_backbone" in inspect.signature(torchvision.models.get_model_builder(name)).parameters:
        options["weights_backbone"] = None  # else the backbone's weights are downloaded
    keys = list(state or ())
    if name.removeprefix("quantized_") in ("googlenet", "inception_v3"):
        options["init_weights"] = state is None
        if state is not None:
            options["aux_logits"] = any("aux" in key.lower() for key in keys)
            options["transform_input"] = entry is not None  # trained on another normalisation, which it applies itself
    elif any("aux_classifier." in key for key in keys):
        options["aux_loss"] = True
    if name.startswith("vit_") and entry is not None:
        options["image_size"] = entry.meta["min_size"][0]
    with warnings.catch_warnings():  # googlenet warns that its auxiliary heads are not trained
        warnings.simplefilter("ignore")
        built: nn.Module = torchvision.models.get_model(name, weights=None, **options)
    return built


def _present_names(state: State) -> State:
    """Rename DenseNet's weights from the names of its first release, which torchvision's own files still bear."""
    old = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")
    if not any(old.search(key) for key in state):
        return state
    return OrderedDict((old.sub(r"\1\2", key), value) for key, value in state.items())
