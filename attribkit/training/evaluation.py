"""Errors: of a network in training, by single centre crops; and of any loaded model, by one crop or ten."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attribkit.datasets import ImageSource
from attribkit.engine.outputs import class_scores
from attribkit.errors import InputError, ModelError
from attribkit.images import to_rgb
from attribkit.models.building import LoadedModel
from attribkit.progress import track
from attribkit.training.naming import class_numbers
from attribkit.training.networks import AsEvaluated, Normaliser
from attribkit.training.pixels import Pixels, ahead, centre_crop, ten_crops

__all__ = ["Errors", "accuracy", "crops_of", "error_counts"]


@dataclass(frozen=True)
class Errors:
    """How often a model is wrong.

    Attributes
    ----------
    images
        How many were looked at.
    top1, top5
        The fraction whose class is not the most probable one; not among the five most probable ones.
    loss
        The mean cross-entropy.
    """

    images: int
    top1: float
    top5: float
    loss: float


def error_counts(probabilities: Tensor, classes: Tensor) -> Tensor:
    """Return [top-1 errors, top-5 errors, summed cross-entropy, images] in float64.

    Parameters
    ----------
    probabilities
        [n, K].
    classes
        The right ones, [n].
    """
    values = probabilities.double()
    best = values.topk(min(5, values.shape[1])).indices
    hit = best == classes[:, None]
    loss = F.nll_loss(values.clamp_min(1e-300).log(), classes, reduction="sum")
    counts = [(~hit[:, 0]).sum(), (~hit.any(dim=1)).sum(), loss, torch.tensor(float(len(classes)))]
    return torch.stack([count.double().cpu() for count in counts])


def crops_of(images: Tensor, size: int, crops: int) -> list[Tensor]:
    """Return the centre crop of images [n, C, H, W], or the ten crops."""
    if crops not in (1, 10):
        raise InputError(f"crops={crops} must be 1 or 10")
    return [centre_crop(images, size)] if crops == 1 else ten_crops(images, size)


def evaluate(
    network: nn.Module,
    pixels: Pixels,
    classes: Tensor,
    normaliser: Normaliser,
    size: int,
    *,
    device: torch.device,
    crops: int = 1,
    batch_size: int = 256,
    workers: int = 0,
    context: Callable[[], AbstractContextManager[Any]] = nullcontext,
    share: tuple[int, int] = (0, 1),
    channels_last: bool = False,
) -> Tensor:
    """Return `error_counts` of a network over images, summed; its training flags come back.

    Parameters
    ----------
    network, pixels, classes, normaliser, size
        The network; the images, their classes and what turns their bytes into input of ``size``.
    device
        Where the network is.
    crops
        1: the centre; 10: the mean of the ten crops' probabilities.
    batch_size
        Images at a time.
    workers
        Threads that prepare batches.
    context
        Entered around every forward pass (autocast).
    share
        (rank, world size): every world-size-th image is looked at, from the rank-th.
    channels_last
        The input's memory format.
    """
    rows = np.arange(share[0], len(pixels), share[1])
    batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    total = torch.zeros(4, dtype=torch.float64)
    training = [(module, module.training) for module in network.modules()]
    network.eval()
    made = ahead(lambda batch: normaliser.centred(pixels.take(batch)), batches, workers)
    try:
        with torch.no_grad():
            for batch, whole in zip(batches, track(made, "validation", len(batches)), strict=True):
                found: Any = 0.0
                for crop in crops_of(whole, size, crops):
                    inputs = normaliser(crop.to(device))
                    if channels_last:
                        inputs = inputs.contiguous(memory_format=torch.channels_last)
                    with context():
                        scores = class_scores(network(inputs))
                    found = found + scores.float().softmax(dim=1)
                total += error_counts(found / crops, classes[torch.from_numpy(batch)].to(device))
    finally:
        for module, flag in training:
            module.training = flag
    return total


def errors_from(total: Tensor) -> Errors:
    """Return summed `error_counts` as fractions."""
    images = int(total[3])
    top1, top5, loss = (float(value) / max(images, 1) for value in total[:3])
    return Errors(images, top1, top5, loss)


def accuracy(
    loaded: LoadedModel,
    source: ImageSource,
    *,
    crops: int = 1,
    batch_size: int = 128,
    device: torch.device | str = "cpu",
    limit: int | None = None,
) -> Errors:
    """Measure how often a loaded model is wrong, with its own preprocessing.

    Parameters
    ----------
    loaded
        From `attribkit.load_model`.
    source
        Labelled images. Where they and the model have class names, classes are matched by name, and the images may be
        of some of the classes only; else class k of the source is the model's class k (`class_numbers`).
    crops
        1: what the preprocessing cuts out; 10: the image resized as the preprocessing does, the four corners and the
        centre of it and all of them flipped, their probabilities averaged (§3).
    batch_size
        Images at a time.
    device
        Where the model runs.
    limit
        Look at the first so many images only.

    Raises
    ------
    InputError
        If the images have no classes, or another number of them than the model and one side has no names; if
        ``crops`` is neither.
    UnknownNameError
        If the model has no class of that name.
    ModelError
        If ten crops cannot be taken from the preprocessing.
    """
    if crops not in (1, 10):
        raise InputError(f"crops={crops} must be 1 or 10")
    classes = torch.from_numpy(source.classes())[:limit]
    model = loaded.model.to(device).eval()
    steps = None if crops == 1 else _ten_crop_steps(loaded)
    total = torch.zeros(4, dtype=torch.float64)
    starts = range(0, len(classes), batch_size)
    numbers: Tensor | None = None
    with torch.no_grad():
        for start in track(starts, f"{source.name}"):
            wanted = classes[start : start + batch_size]
            images = [source.load(start + i) for i in range(len(wanted))]
            found: Any = 0.0
            for inputs in _inputs(loaded, images, steps):
                found = found + class_scores(model(inputs.to(device))).float().softmax(dim=1)
            if numbers is None:  # how many classes the model has, its first output says for certain
                names = source.labels or tuple(map(str, range(int(classes.max()) + 1)))
                known = class_numbers(
                    names, loaded.labels, found.shape[1], classes.numpy(), data=source.name, model=loaded.name
                )
                numbers = torch.from_numpy(known)
            total += error_counts(found / crops, numbers[wanted].to(device))
    return errors_from(total)


class _TenCropSteps(NamedTuple):
    """What ten crops are made by: from a Pillow image to [C, H, W], the crops' side, and from a crop to the input."""

    whole: Callable[[Any], Tensor]
    size: int
    finish: Callable[[Tensor], Tensor]


def _inputs(loaded: LoadedModel, images: list[Any], steps: _TenCropSteps | None) -> Iterator[Tensor]:
    """Yield a batch for each crop."""
    if steps is None:
        yield torch.stack([loaded.preprocess(image) for image in images])
        return
    mode = "RGB" if loaded.input_size[0] == 3 else "L"
    cut = [ten_crops(steps.whole(to_rgb(image).convert(mode)), steps.size) for image in images]
    for place in range(10):
        yield torch.stack([steps.finish(crops[place]) for crops in cut])


def _bytes(image: Any) -> Tensor:
    values = torch.from_numpy(np.array(image))
    return values[None] if values.ndim == 2 else values.permute(2, 0, 1)


def _ten_crop_steps(loaded: LoadedModel) -> _TenCropSteps:
    """Return how a run's preprocessing makes ten crops, or one by timm."""
    from torchvision import transforms

    transform = getattr(loaded.preprocess, "transform", None)
    if isinstance(transform, AsEvaluated):
        return _TenCropSteps(transform.whole, transform.size, transform.finish)
    steps = list(getattr(transform, "transforms", ()))
    place = next((i for i, step in enumerate(steps) if isinstance(step, transforms.CenterCrop)), None)
    normalise = next((step for step in steps if isinstance(step, transforms.Normalize)), None)
    if place is None or normalise is None:
        raise ModelError(f"{loaded.name}: ten crops need a preprocessing that resizes, crops and normalises by timm")
    before = transforms.Compose(steps[:place])
    size = steps[place].size
    side = size if isinstance(size, int) else size[0]
    if not isinstance(size, int) and len(set(size)) > 1:
        raise ModelError(f"{loaded.name}: ten crops need a square input, not {size}")

    def after(crop: Tensor) -> Tensor:
        values: Tensor = normalise(crop.float() / 255)
        return values

    return _TenCropSteps(lambda image: _bytes(before(image)), side, after)
