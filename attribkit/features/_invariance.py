"""Invariance (paper Fig. 5): how far features move, and the true class's probability, as an image is transformed."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from attribkit.checks import check_inputs, usable_model
from attribkit.engine.state import pristine
from attribkit.errors import InputError, InputTypeError
from attribkit.features._observe import before_classifier, check_layers, first_layer, look
from attribkit.features._tables import write_csv
from attribkit.features._transforms import Fill, transform
from attribkit.progress import track

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["TRANSFORMS", "Curve", "Invariance", "invariance"]

#: The transforms with the unit of their amount and the amount that changes nothing.
TRANSFORMS = {"translation": ("pixels down", 0.0), "scale": ("factor", 1.0), "rotation": ("degrees", 0.0)}
_ARGUMENT = {"translation": "down", "scale": "scale", "rotation": "degrees"}


@dataclass(frozen=True, eq=False)
class Curve:
    """What one transform does to N images at A amounts and L layers.

    Attributes
    ----------
    amounts
        float64 [A].
    distances
        float64 [L, N, A]: Euclidean distance of a layer's feature vector from that of the untransformed image.
    probability
        float64 [N, A]: of the image's class.
    """

    amounts: npt.NDArray[np.float64]
    distances: npt.NDArray[np.float64]
    probability: npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Invariance:
    """Curves of every transform, and what is needed to read them.

    Attributes
    ----------
    layers
        The layers' names [L].
    norms
        float64 [L, N]: length of each untransformed image's feature vector.
    ids, classes
        The images' names and classes [N].
    names
        What the classes are called [N].
    curves
        By transform: ``"translation"``, ``"scale"``, ``"rotation"``.
    inputs
        The untransformed inputs [N, C, H, W].
    fill
        What came in from outside the image.
    """

    layers: tuple[str, ...]
    norms: npt.NDArray[np.float64]
    ids: tuple[str, ...]
    classes: npt.NDArray[np.int64]
    names: tuple[str, ...]
    curves: dict[str, Curve]
    inputs: Tensor
    fill: Fill

    def to_csv(self, path: str | os.PathLike[str]) -> Path:
        """Write one row an image, transform and amount: the probability and each layer's distance and norm."""
        columns = [f"{what}:{layer}" for layer in self.layers for what in ("distance", "norm")]
        rows = [
            [self.ids[n], self.classes[n], self.names[n], name, amount, curve.probability[n, a]]
            + [v for i in range(len(self.layers)) for v in (curve.distances[i, n, a], self.norms[i, n])]
            for n in range(len(self.ids))
            for name, curve in self.curves.items()
            for a, amount in enumerate(curve.amounts)
        ]
        return write_csv(path, ["image", "class", "name", "transform", "amount", "probability", *columns], rows)

    def plot(self, denormalize: Any = None) -> Figure:
        """Draw the curves, a row a transform (`attribkit.features.plot`); ``denormalize`` is a `LoadedModel`'s."""
        from attribkit.features.draw.invariance import plot

        return plot(self, denormalize)


def invariance(
    model: nn.Module,
    inputs: Tensor,
    classes: Tensor | Sequence[int] | None = None,
    *,
    layers: Sequence[str] | None = None,
    translations: Sequence[float] | None = None,
    scales: Sequence[float] | None = None,
    rotations: Sequence[float] | None = None,
    fill: Fill = 0.0,
    batch_size: int = 32,
    ids: Sequence[str] | None = None,
    labels: Sequence[str] | None = None,
) -> Invariance:
    """Measure how features and class respond to shifting, scaling and turning the image (paper §4, Fig. 5).

    Parameters
    ----------
    model
        A classifier; it runs in eval mode and is left as it was.
    inputs
        Float tensor [N, C, H, W], normalised: see `transform` for why that is as good as transforming the picture.
    classes
        The images' true classes [N]; None: the model's answer to each untransformed image.
    layers
        Where to measure; None: the end of the first layer, and the one that the classifier works on.
    translations
        Vertical shifts in pixels; None: 21 whole ones from −H/4 to H/4. An empty sequence leaves the transform out.
    scales
        Factors; None: 21 from 0.6 to 1.8 and 1.
    rotations
        Degrees, counter-clockwise; None: every 15 from 0 to 360.
    fill
        What comes in from outside: a number in the inputs' normalised units, one a channel, or ``"edge"``.
    batch_size
        Images a forward pass.
    ids, labels
        Names of the images and of the classes.

    Returns
    -------
    Invariance

    Raises
    ------
    InputError
        Inputs, classes, amounts or fill break a rule.
    UnknownNameError
        The model has no such layer.
    ModelError
        The model returns no class scores, or a layer must be named.
    """
    model = usable_model(model)
    check_inputs(inputs)
    inputs = inputs.detach()
    amounts = _amounts(translations, scales, rotations, inputs.shape[-2])
    if layers is None:
        layers = tuple(dict.fromkeys((first_layer(model, inputs), before_classifier(model, inputs))))
    layers = check_layers(layers)
    given = _classes(classes, len(inputs))
    curves = {}
    with pristine(model, inputs), torch.no_grad():
        clean = look(model, inputs, layers)
        scores = clean.probabilities()
        truth = scores.argmax(1) if given is None else given.to(scores.device)
        if int(truth.min()) < 0 or int(truth.max()) >= scores.shape[1]:
            raise InputError(
                f"classes run from {int(truth.min())} to {int(truth.max())}: the model has {scores.shape[1]}"
            )
        origin = {layer: clean.vectors(layer).double() for layer in layers}
        for name, steps in track(list(amounts.items()), "transforms"):
            distances = np.zeros((len(layers), len(inputs), len(steps)))
            probability = np.zeros((len(inputs), len(steps)))
            jobs = [(n, a) for n in range(len(inputs)) for a in range(len(steps))]
            for start in track(range(0, len(jobs), batch_size), name):
                part = jobs[start : start + batch_size]
                moved = [transform(inputs[n : n + 1], fill=fill, **{_ARGUMENT[name]: steps[a]}) for n, a in part]
                seen = look(model, torch.cat(moved), layers)
                n, a = map(list, zip(*part, strict=True))
                rows = torch.tensor(n, device=inputs.device)
                probability[n, a] = seen.probabilities().double().gather(1, truth[rows, None])[:, 0].cpu().numpy()
                for i, layer in enumerate(layers):
                    gap = seen.vectors(layer).double() - origin[layer][rows]
                    distances[i, n, a] = gap.norm(dim=1).cpu().numpy()
            curves[name] = Curve(np.asarray(steps, dtype=np.float64), distances, probability)
    found = truth.cpu().numpy()
    return Invariance(
        layers=layers,
        norms=np.stack([origin[layer].norm(dim=1).cpu().numpy() for layer in layers]),
        ids=tuple(ids) if ids is not None else tuple(map(str, range(len(inputs)))),
        classes=found,
        names=tuple(labels[c] if labels is not None and c < len(labels) else f"class {c}" for c in found.tolist()),
        curves=curves,
        inputs=inputs.cpu(),
        fill=fill,
    )


def _amounts(
    translations: Sequence[float] | None, scales: Sequence[float] | None, rotations: Sequence[float] | None, height: int
) -> dict[str, list[float]]:
    reach = height // 4
    defaults = {
        "translation": sorted({float(round(v)) for v in np.linspace(-reach, reach, 21)}),
        "scale": sorted({1.0, *(round(0.6 + 0.06 * i, 2) for i in range(21))}),
        "rotation": [float(v) for v in range(0, 361, 15)],
    }
    found = {}
    for name, given in zip(defaults, (translations, scales, rotations), strict=True):
        try:
            steps = defaults[name] if given is None else [float(v) for v in given]
        except (TypeError, ValueError):
            raise InputTypeError(f"{name}: amounts must be numbers, got {given!r}") from None
        wrong = next((v for v in steps if not math.isfinite(v) or (name == "scale" and v <= 0)), None)
        if wrong is not None:
            raise InputError(f"{name}: {wrong} is no {TRANSFORMS[name][0]}" + (" above 0" if name == "scale" else ""))
        if steps:
            found[name] = steps
    if not found:
        raise InputError("every transform was left out: give at least one amount")
    return found


def _classes(classes: Tensor | Sequence[int] | None, count: int) -> Tensor | None:
    if classes is None:
        return None
    found = torch.as_tensor(classes)
    if found.is_floating_point() or found.shape != (count,):
        raise InputError(f"classes must be {count} ints, one an image, got {found.dtype} {tuple(found.shape)}")
    return found.long()
