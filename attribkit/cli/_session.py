"""A model made ready for the command line: on its device, with its class names, and asked for its answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from attribkit._version import __version__
from attribkit.cli._group import say_warning
from attribkit.engine.outputs import class_scores
from attribkit.errors import InputError, ModelError, UnknownNameError, did_you_mean
from attribkit.models.labels import read_labels
from attribkit.models.loading import load_model
from attribkit.models.packaged import default_model
from attribkit.report.parts import TopClass

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from attribkit.models.loading import LoadedModel

RANDOM = "random"
"""How a `LoadedModel` describes weights that were never trained."""


@dataclass
class Answer:
    """What the model says of one image.

    Attributes
    ----------
    probabilities
        Of each class, [K] in float64 on the CPU; None where the output holds no class scores.
    top
        The five most probable classes.
    """

    probabilities: Tensor | None
    top: tuple[TopClass, ...]


class Session:
    """A loaded model, where it runs and what its classes are called.

    Parameters
    ----------
    model
        As for `attribkit.load_model`; None takes the default.
    weights
        A checkpoint file, or None.
    labels
        A file of class names, one a line, or None for the model's own.
    device
        Such as ``"cpu"`` or ``"cuda:0"``; None takes a CUDA device where there is one.

    Raises
    ------
    InputError, ModelError, CheckpointError
        The device, the labels, the model or its weights cannot be used.
    """

    def __init__(
        self, model: str | None = None, weights: str | None = None, labels: str | None = None, device: str | None = None
    ) -> None:
        self.device = usable_device(device)
        names = read_labels(labels) if labels is not None else None
        self._labels_file = labels
        self.loaded: LoadedModel = open_model(model, weights)
        if self.loaded.weights == RANDOM:
            say_warning(f"{self.loaded.name} has random weights: give --weights FILE for answers that mean something")
        self.labels: Sequence[str] | None = names if names is not None else self.loaded.labels
        try:
            self.model = self.loaded.model.to(self.device).eval()
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            raise InputError(f"device {str(self.device)!r} cannot hold the model: {error}") from error

    def inputs(self, image: Image.Image) -> Tensor:
        """Return what the model is shown of an image, [1, C, H, W] on its device."""
        return self.loaded.preprocess(image)[None].to(self.device)

    def answer(self, inputs: Tensor, needs_classes: bool = True) -> Answer:
        """Ask the model.

        Parameters
        ----------
        inputs
            One image [1, C, H, W].
        needs_classes
            Whether an output without class scores is an error, or merely has no top five.

        Raises
        ------
        ModelError
            The output holds no class scores, or some that are not numbers.
        InputError
            The labels are not as many as the classes.
        Exception
            What the model's forward raises, marked ``attribkit_origin = "model forward"``.
        """
        try:
            with torch.no_grad():
                output = self.model(inputs)
        except Exception as error:
            error.attribkit_origin = "model forward"  # type: ignore[attr-defined]
            raise
        try:
            scores = class_scores(output)[0]
        except ModelError:
            if needs_classes:
                raise
            return Answer(None, ())
        probabilities = scores.detach().cpu().double().softmax(0)
        if bool(probabilities.isnan().any()):
            raise ModelError("the model's class scores hold NaN or infinite values")
        if self.labels is not None and len(self.labels) != len(probabilities):
            if self._labels_file is not None:
                read_labels(self._labels_file, len(probabilities))  # says how many there must be
            self.labels = None
        best = probabilities.topk(min(5, len(probabilities)))
        top = tuple(
            TopClass(int(index), self.label(int(index)), float(probability))
            for probability, index in zip(best.values, best.indices, strict=True)
        )
        return Answer(probabilities, top)

    def label(self, index: int) -> str:
        """Return a class's name, or ``class 7``."""
        from attribkit.report.figures import class_name

        return class_name(index, self.labels)

    def class_target(self, given: str) -> int | None:
        """Return the class that ``--target`` means: None for ``auto``, an index, or the class of that name.

        Raises
        ------
        InputError
            The name is no class's, or more than one's.
        """
        if given.casefold() == "auto":
            return None
        if given.isdecimal():
            return int(given)
        if given.lstrip("+-").isdecimal():
            raise InputError(f"target class {given} is out of range: classes are counted from 0")
        if self.labels is None:
            raise InputError(f"target {given!r}: the model's classes have no names: give an index, or --labels FILE")
        return find_class(given, self.labels)


def find_class(name: str, labels: Sequence[str]) -> int:
    """Return the index of the class called ``name``, in upper or lower case; one of a label's synonyms will do.

    Raises
    ------
    UnknownNameError
        No class is called so; the message suggests the nearest names.
    InputError
        Several are.
    """
    wanted = " ".join(name.casefold().split())
    synonyms = [[part.strip() for part in label.split(",")] for label in labels]
    exact = [index for index, label in enumerate(labels) if label.casefold() == wanted]
    found = exact or [i for i, parts in enumerate(synonyms) if wanted in (part.casefold() for part in parts)]
    if not found:
        known = list(dict.fromkeys([*labels, *(part for parts in synonyms for part in parts)]))
        raise UnknownNameError(f"target: no class is called {name!r}: {did_you_mean(name, known)}")
    if len(found) > 1:
        which = " and ".join(f"{index} ({labels[index]})" for index in found)
        raise InputError(f"target: {name!r} names the classes {which}; give the index")
    return found[0]


def open_model(model: str | None, weights: str | None) -> LoadedModel:
    """Load a model by name, or the default one."""
    return load_model(model if model is not None else default_model(), weights=weights)


def usable_device(name: str | None) -> torch.device:
    """Return the device called ``name``, or the best one there is.

    Raises
    ------
    InputError
        The name is no device's, or this machine has none such.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"device {name!r} is not known: use cpu, cuda, cuda:0, mps, …") from None
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise InputError(f"device {name!r} is not there: torch finds {count} CUDA device(s) on this machine")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise InputError(f"device {name!r} is not there: torch finds no MPS device on this machine")
    return device


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    import platform

    import timm
    import torchvision

    return {
        "attribkit": __version__,
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "timm": str(timm.__version__),
        "python": platform.python_version(),
    }
