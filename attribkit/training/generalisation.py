"""How well a layer's features serve another task: a linear classifier on frozen features (paper, Tables 4-7)."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from attribkit.attribution import write_atomically
from attribkit.datasets import ImageSource
from attribkit.engine.state import pristine
from attribkit.errors import InputError, as_int
from attribkit.features._observe import check_layers, look
from attribkit.folders import made_folder
from attribkit.models.building import LoadedModel
from attribkit.progress import track
from attribkit.training.classifiers import fit_linear

__all__ = ["ProbeRow", "draw_folds", "layer_features", "probe", "write_probe"]

Indices = npt.NDArray[np.int64]
#: Without a set to test on, at most this many images a class are tested with (the paper's number for Caltech-101).
TEST_PER_CLASS = 50


@dataclass(frozen=True)
class ProbeRow:
    """The error of classifiers on one layer's features, from so many training images a class.

    Attributes
    ----------
    layer, features
        The layer, and how long its feature vector is.
    classifier
        ``"softmax"`` or ``"svm"``.
    per_class
        Training images a class; None: all there are.
    error, std
        Mean and standard deviation (of the folds, n - 1; 0 for one fold) of the top-1 error on the test images.
    folds
        How many draws of training images there were.
    train_images, test_images
        How many images each fold fitted and tested with.
    """

    layer: str
    features: int
    classifier: str
    per_class: int | None
    error: float
    std: float
    folds: int
    train_images: int
    test_images: int


def probe(
    loaded: LoadedModel,
    train: ImageSource,
    test: ImageSource | None = None,
    *,
    layers: Sequence[str],
    per_class: Sequence[int | None] = (15, 30, 60, None),
    folds: int = 5,
    classifier: str = "softmax",
    decay: float = 1e-3,
    max_features: int = 10_000,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> list[ProbeRow]:
    """Freeze a model up to a layer and train a new classifier on what the layer says of other images.

    Parameters
    ----------
    loaded
        The model, with its preprocessing; it is left as it was.
    train, test
        Labelled images. Without ``test``, each fold tests with up to 50 images a class that it does not train with.
    layers
        Names of layers, as `attribkit.inspect` lists them.
    per_class
        How many images a class to train with; None: all. All there are make one fold where ``test`` is given.
    folds
        How many random draws of training images.
    classifier
        ``"softmax"`` or ``"svm"`` (linear).
    decay
        L2 penalty, see `attribkit.training.classifiers.fit_linear`.
    max_features
        A layer's maps are averaged over a grid of cells, the finest that leaves no more numbers an image than this.
    batch_size, device
        How the model is run.
    seed
        Of the draws.

    Returns
    -------
    list of ProbeRow
        For each layer, for each number of images.

    Raises
    ------
    InputError
        If a class has too few images, or an argument is out of range.
    UnknownNameError
        If the model calls no such layer.
    """
    names = check_layers(layers)
    if classifier not in ("softmax", "svm"):
        raise InputError(f"classifier={classifier!r} must be softmax or svm")
    if as_int("folds", folds) < 1 or as_int("max_features", max_features) < 1 or as_int("batch_size", batch_size) < 1:
        raise InputError(f"folds={folds}, max_features={max_features} and batch_size={batch_size} must be at least 1")
    if not decay >= 0:
        raise InputError(f"decay={decay!r} must be a number from 0")
    classes = train.classes()
    if test is not None and test.labels != train.labels:
        raise InputError(f"{test.name}: its classes {test.labels} are not those of {train.name}: {train.labels}")
    plans = {count: draw_folds(classes, count, folds, seed, held=test is None, name=train.name) for count in per_class}
    if not plans:
        raise InputError("per_class names no number of images")
    wanted = np.unique(np.concatenate([rows for plan in plans.values() for pair in plan for rows in pair]))
    kept = layer_features(loaded, train, names, wanted, max_features, batch_size, device)
    place = {int(row): number for number, row in enumerate(wanted)}
    targets = torch.from_numpy(classes[wanted])
    if test is not None:
        all_rows = np.arange(len(test))
        tested = layer_features(loaded, test, names, all_rows, max_features, batch_size, device)
        test_targets = torch.from_numpy(test.classes())
    count_classes = int(classes.max()) + 1
    rows: list[ProbeRow] = []
    for layer in names:
        for count, plan in track(list(plans.items()), f"classifiers on {layer}"):
            errors = []
            for fit_rows, held_rows in plan:
                fit = torch.tensor([place[int(row)] for row in fit_rows])
                found = fit_linear(kept[layer][fit], targets[fit], count_classes, kind=classifier, decay=decay)
                if test is None:
                    out = torch.tensor([place[int(row)] for row in held_rows])
                    values, right = kept[layer][out], targets[out]
                else:
                    values, right = tested[layer], test_targets
                errors.append(float((found.predict(values) != right).double().mean()))
            spread = float(np.std(errors, ddof=1)) if len(errors) > 1 else 0.0
            fitted, held = (len(part) for part in plan[0])
            size = kept[layer].shape[1]
            mean = float(np.mean(errors))
            rows.append(
                ProbeRow(
                    layer,
                    size,
                    classifier,
                    count,
                    mean,
                    spread,
                    len(errors),
                    fitted,
                    held if test is None else len(test),
                )
            )
    return rows


def draw_folds(
    classes: Indices, per_class: int | None, folds: int, seed: int, *, held: bool, name: str = "data"
) -> list[tuple[Indices, Indices]]:
    """Draw, for each fold, the rows to fit with and (with ``held``) others to test with; no row is in both.

    Parameters
    ----------
    classes
        Of every row.
    per_class
        Rows a class to fit with; None: all, or all but those tested with.
    folds, seed
        How many draws, and what they are drawn from.
    held
        Whether rows are needed to test with: up to `TEST_PER_CLASS` a class, at most half where ``per_class`` is None.
    name
        What errors call the data.

    Raises
    ------
    InputError
        If a class has too few rows.
    """
    if per_class is not None and as_int("per_class", per_class) < 1:
        raise InputError(f"per_class={per_class} must be at least 1")
    counts = np.bincount(classes)
    present = np.flatnonzero(counts)
    scarce = int(present[counts[present].argmin()])
    least = (per_class or 1) + (1 if held else 0)
    if counts[scarce] < least:
        raise InputError(
            f"{name}: class {scarce} has {counts[scarce]} images; {per_class or 'all'} a class to train with"
            f"{' and one to test with' if held else ''} need {least}"
        )
    plan = []
    for fold in range(1 if per_class is None and not held else folds):
        rng = np.random.default_rng([seed, 3, fold])
        fit, out = [], []
        for label in present:
            rows = rng.permutation(np.flatnonzero(classes == label))
            left = len(rows) // 2 if per_class is None else len(rows) - per_class
            tested = min(TEST_PER_CLASS, max(left, 1)) if held else 0
            out.append(rows[:tested])
            fit.append(rows[tested : None if per_class is None else tested + per_class])
        plan.append((np.concatenate(fit), np.concatenate(out)))
    return plan


def layer_features(
    loaded: LoadedModel,
    source: ImageSource,
    layers: Sequence[str],
    rows: Indices,
    max_features: int = 10_000,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
) -> dict[str, Tensor]:
    """Return layers' outputs for some images of a source, each [n, D] float32 on the CPU, flattened.

    Parameters
    ----------
    loaded, source, layers, rows
        The model; the images, and which of them.
    max_features
        See `probe`.
    batch_size, device
        How the model is run.
    """
    model = loaded.model.to(device)
    found: dict[str, list[Tensor]] = {layer: [] for layer in layers}
    for start in track(range(0, len(rows), batch_size), f"features of {source.name}"):
        images = [source.load(int(row)) for row in rows[start : start + batch_size]]
        inputs = torch.stack([loaded.preprocess(image) for image in images]).to(device)
        with pristine(model, inputs):
            seen = look(model, inputs, layers)
        for layer in layers:
            value = _pooled(seen.values[layer].float(), seen.layouts[layer], max_features)
            found[layer].append(value.flatten(1).cpu())
    return {layer: torch.cat(parts) for layer, parts in found.items()}


def _pooled(value: Tensor, layout: str | None, most: int) -> Tensor:
    """Average maps over the finest grid of cells that leaves at most ``most`` numbers."""
    if value[0].numel() <= most or value.ndim < 3:
        return value
    if value.ndim == 3:
        return value.mean(dim=1)  # tokens
    maps = value.permute(0, 3, 1, 2) if layout == "NHWC" else value
    side = max(1, min(int((most / maps.shape[1]) ** 0.5), *maps.shape[2:]))
    return F.adaptive_avg_pool2d(maps, side)


def write_probe(folder: str | os.PathLike[str], rows: Sequence[ProbeRow]) -> None:
    """Write ``probe.csv`` and, as curves by the number of training images, ``probe.png``.

    Raises
    ------
    InputError
        The folder cannot be made, or not be written into.
    """
    from matplotlib.figure import Figure

    place = Path(folder)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(ProbeRow.__dataclass_fields__), lineterminator="\n")
    writer.writeheader()
    writer.writerows({**asdict(row), "per_class": "all" if row.per_class is None else row.per_class} for row in rows)
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes: Any = figure.add_subplot()
    kinds = len({row.classifier for row in rows}) > 1
    for layer, kind in dict.fromkeys((row.layer, row.classifier) for row in rows):
        own = sorted((r for r in rows if (r.layer, r.classifier) == (layer, kind)), key=lambda r: r.train_images)
        label = f"{layer}, {kind}" if kinds else layer
        axes.errorbar(
            [r.train_images for r in own], [100 * r.error for r in own], [100 * r.std for r in own],
            label=label, marker="o", markersize=3, capsize=2,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlabel("training images")
    axes.set_ylabel("top-1 error, %")
    axes.legend(frameon=False, fontsize=8)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=110)
    with made_folder(place):
        write_atomically(place / "probe.csv", text.getvalue().encode())
        write_atomically(place / "probe.png", drawn.getvalue())
