"""What all loaders share: `LoadedModel`, and building a model that a checkpoint may fill."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from attribkit.errors import AttribkitError, CheckpointError, ModelError, did_you_mean
from attribkit.models.checkpoint import State, load_weights, other_classes, read_checkpoint, without_prefixes
from attribkit.models.labels import labels_for
from attribkit.models.preprocess import timm_preprocess
from attribkit.registry import one_line

__all__ = ["LoadedModel", "Weights", "build", "class_option", "count_classes", "described", "guarded", "near"]

Weights = str | os.PathLike[str] | None


@dataclass
class LoadedModel:
    """A model that is ready to be explained.

    Attributes
    ----------
    name
        What it was loaded by, such as ``"timm/resnet18"``.
    model
        The network, in eval mode.
    preprocess
        Takes a PIL image of any mode, returns the input, a float tensor [C, H, W].
    denormalize
        Takes such a tensor (or a batch [..., C, H, W]) back to values in [0, 1], for display.
    labels
        The class names, or None when they are not known.
    input_size
        (C, H, W) of the input that the model was made for.
    weights
        Where the weights came from: a file's name, a distribution and its version, ``"random"``, …
    preprocessing
        What ``preprocess`` does and who says so, in one line.
    """

    name: str
    model: nn.Module = field(repr=False)
    preprocess: Callable[[Image.Image], torch.Tensor]
    denormalize: Callable[[torch.Tensor], torch.Tensor]
    labels: list[str] | None = field(repr=False)
    input_size: tuple[int, int, int]
    weights: str | None = None
    preprocessing: str = ""

    def _repr_html_(self) -> str:
        from attribkit.report.notebook import model_html

        return model_html(self)


def build(
    create: Callable[[int | None], nn.Module],
    name: str,
    weights: Weights,
    rename: Callable[[State], State] | None = None,
    names: tuple[str, ...] = ("random",),
) -> tuple[nn.Module, str]:
    """Build a model and fill it; return it and where its weights came from.

    Parameters
    ----------
    create
        Builds the model with random weights, for a number of classes or (None) its default one.
    name
        What errors call the model.
    weights
        A checkpoint file, or None or ``"random"``.
    rename
        Gives the checkpoint's weights the model's names.
    names
        What ``weights`` may be besides a file, for the error.
    """
    if weights is None or weights == "random":
        return guarded(name, lambda: create(None)), "random"
    choices = " or ".join(map(repr, names))
    if not Path(weights).suffix and not os.path.exists(weights):
        raise CheckpointError(f"weights {os.fspath(weights)!r} of {name}: neither a file nor {choices}")
    state = read_checkpoint(weights)
    if rename is not None:
        try:
            state = rename(state)
        except (KeyError, IndexError, ValueError) as error:
            raise CheckpointError(f"checkpoint {weights} does not fit {name}: unexpected name {error}") from error
    model = guarded(name, lambda: create(None))
    state = without_prefixes(state, model)
    classes = other_classes(model, state)
    if classes is not None:
        model = guarded(name, lambda: create(classes))
    load_weights(model, state, checkpoint=os.fspath(weights), name=name)
    return model, Path(weights).name


def count_classes(model: nn.Module) -> int | None:
    """Return the number of classes: what the model states (``num_classes``), else the outputs of its last layer.

    That is its last linear layer, or its last convolution when it has no linear one.
    """
    stated = getattr(model, "num_classes", None)
    if isinstance(stated, int):
        return stated
    modules = list(model.modules())
    sizes = [module.out_features for module in modules if isinstance(module, nn.Linear)]
    sizes = sizes or [module.out_channels for module in modules if isinstance(module, nn.Conv2d)]
    return sizes[-1] if sizes else None


def described(
    name: str,
    model: nn.Module,
    source: str,
    labels: list[str] | None = None,
    config: Mapping[str, Any] | None = None,
    origin: str = "the model's data config",
) -> LoadedModel:
    """Put ``model`` into eval mode and return it with the preprocessing of its own (or the given) data config.

    Parameters
    ----------
    name, source
        `LoadedModel`'s ``name`` and ``weights``.
    model
        The network.
    labels
        Its class names; None takes ImageNet's when it has 1000 classes.
    config
        Taken instead of the model's ``pretrained_cfg``.
    origin
        What ``preprocessing`` calls the data config.
    """
    try:
        preprocess, denormalize, size = timm_preprocess(model, config, origin)
    except ModelError as error:
        raise ModelError(f"model {name!r}: {error}") from error
    if labels is None:
        labels = labels_for(count_classes(model))
    return LoadedModel(name, model.eval(), preprocess, denormalize, labels, size, source, preprocess.description)


def guarded(name: str, make: Callable[[], Any], doing: str = "build") -> Any:
    """Call ``make``; whatever it raises becomes one line that names the model."""
    try:
        return make()
    except AttribkitError:
        raise
    except Exception as error:
        raise ModelError(f"cannot {doing} {name}: {one_line(error)}") from error


def class_option(number: int | None) -> dict[str, Any]:
    """Return the keyword argument for a number of classes; none for a model's default."""
    return {} if number is None else {"num_classes": number}


def near(prefix: str, name: str, names: Iterable[str]) -> str:
    """Return `did_you_mean`'s clause with the names as `load_model` takes them."""
    return re.sub(r"'([^']+)'", rf"'{prefix}/\1'", did_you_mean(name, names))
