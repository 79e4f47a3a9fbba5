"""What a training run is: the numbers of the paper's recipe (§3), checked once and kept with the run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from attribkit.errors import AttribkitError, InputError, as_int

__all__ = ["Recipe", "TrainingError", "differences"]

INITS = ("paper", "scaled", "he", "model")
MEANS = ("channel", "pixel", "model")


class TrainingError(AttribkitError, RuntimeError):
    """A run cannot go on: its loss is no number, or the folder holds another run."""


@dataclass(frozen=True)
class Recipe:
    """How to train. The defaults are the paper's (§3), as far as it states them.

    Attributes
    ----------
    model
        ``"zfnet"`` or the name of any timm model.
    model_options
        What its constructor is called with besides the number of classes.
    epochs
        Passes over the training images.
    batch_size
        Images a step, over all processes together.
    lr, momentum, weight_decay
        Of stochastic gradient descent; ``lr`` is where it starts. The paper names no weight decay.
    patience, anneal, min_delta, min_lr
        After more than ``patience`` epochs in a row that did not bring the validation error at least ``min_delta``
        (a fraction of 1) below its best so far, the rate is multiplied by ``anneal``; training ends when it would fall
        below ``min_lr``.
    size, resize
        Pixels: the smallest side is resized to ``resize``, the centre ``resize``×``resize`` cut out, and of it a random
        ``size``×``size`` in training, the centre one in validation.
    flip
        Whether each training image is flipped left to right in every other epoch on average.
    init
        ``"paper"``: weights from N(0, 0.01), biases 0; ``"scaled"``: that, for a ZFNet of another width or size;
        ``"he"``: N(0, √(2/fan-in)); ``"model"``: the model's own (see `attribkit.training.steps`). None takes
        the paper's for zfnet, else the model's own.
    mean
        What is subtracted: ``"channel"``, the training set's mean colour; ``"pixel"``, its mean image (the paper's);
        ``"model"``, the mean in the model's data config. None takes "channel" for zfnet, else "model".
    max_norm
        After each step every filter of a convolution whose root mean square exceeds this is scaled back; 0: none.
    val_fraction
        The part of the training images of each class held out for validation, where the data has no part for it.
    seed
        Of everything that is random.
    """

    model: str = "zfnet"
    model_options: Mapping[str, Any] = field(default_factory=dict)
    epochs: int = 70
    batch_size: int = 128
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 0.0
    patience: int = 3
    anneal: float = 0.1
    min_delta: float = 0.0
    min_lr: float = 1e-6
    size: int = 224
    resize: int = 256
    flip: bool = True
    init: str | None = None
    mean: str | None = None
    max_norm: float = 0.1
    val_fraction: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every number; `InputError` names the first that is out of range."""
        for name, least in (("epochs", 0), ("batch_size", 1), ("size", 1), ("resize", 1), ("patience", 0), ("seed", 0)):
            if as_int(name, getattr(self, name)) < least:
                raise InputError(f"{name}={getattr(self, name)} must be at least {least}")
        for name in ("lr", "momentum", "weight_decay", "anneal", "min_delta", "min_lr", "max_norm", "val_fraction"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise InputError(f"{name}={value!r} must be a finite number from 0")
        if not self.lr > 0:
            raise InputError(f"lr={self.lr} must be above 0")
        for name in ("momentum", "anneal", "val_fraction"):
            if not getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)} must be below 1")
        if self.size > self.resize:
            raise InputError(f"size={self.size} must be at most resize={self.resize}: crops are cut from the image")
        for name, known in (("init", INITS), ("mean", MEANS)):
            value = getattr(self, name)
            if value is not None and value not in known:
                raise InputError(f"{name}={value!r} must be one of {', '.join(known)}")

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON keeps it."""
        found = dataclasses.asdict(self)
        return {**found, "model_options": dict(self.model_options)}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return in words where two dictionaries differ."""
    missing = object()
    keys = [*before, *(key for key in now if key not in before)]
    return [
        f"{key} was {before.get(key)!r}, is {now.get(key)!r}"
        for key in keys
        if before.get(key, missing) != now.get(key, missing)
    ]
