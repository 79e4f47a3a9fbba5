"""The occlusion figure (paper Fig. 6): what a grey square does to a feature map, to the class and to the answer."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

import attribkit
from attribkit.builtin.occlusion import windows
from attribkit.checks import check_inputs, usable_model
from attribkit.engine.state import pristine
from attribkit.errors import InputError, as_int
from attribkit.features._inputs import Inputs
from attribkit.features._observe import look, top_maps
from attribkit.features._tables import write_csv
from attribkit.progress import track

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["OcclusionStudy", "occlusion_study"]


@dataclass(frozen=True, eq=False)
class OcclusionStudy:
    """One image under a sliding square, R×S positions.

    Attributes
    ----------
    inputs
        The image [C, H, W].
    windows
        int64 [R, S, 4]: top, left, bottom, right (half-open) of the square.
    layer, channel
        The feature map: of the layer's maps the one with the largest total activity on the clean image.
    activity, clean_activity
        float64 [R, S]: the map's activity summed over positions, under the square; and without it.
    target, probability, clean_probability
        The explained class, its probability [R, S] under the square, and without it.
    labels
        int64 [R, S]: the most probable class.
    projection
        float32 [C, H, W]: the map's strongest activation on this image, carried to pixel space.
    others, other_projections, other_ids
        Images [M, C, H, W] on which the map is strongest, their projections, their names.
    names
        The classes' names, or None.
    fill
        The square's value, in the inputs' units.
    """

    inputs: Tensor
    windows: npt.NDArray[np.int64]
    layer: str
    channel: int
    activity: npt.NDArray[np.float64]
    clean_activity: float
    target: int
    probability: npt.NDArray[np.float64]
    clean_probability: float
    labels: npt.NDArray[np.int64]
    projection: npt.NDArray[np.float32]
    others: Tensor
    other_projections: npt.NDArray[np.float32]
    other_ids: tuple[str, ...]
    names: tuple[str, ...] | None
    fill: float

    def name(self, index: int) -> str:
        """Return what a class is called."""
        from attribkit.report.figures import class_name

        return class_name(index, self.names)

    def to_csv(self, path: str | os.PathLike[str]) -> Path:
        """Write one row a position of the square: where it is, the map's activity, the probability, the answer."""
        header = ["top", "left", "bottom", "right", "activity", "probability", "label", "name"]
        rows = [
            [
                *(*self.windows[r, s], self.activity[r, s], self.probability[r, s]),
                *(self.labels[r, s], self.name(int(self.labels[r, s]))),
            ]
            for r in range(self.windows.shape[0])
            for s in range(self.windows.shape[1])
        ]
        return write_csv(path, header, rows)

    def plot(self, denormalize: Any = None) -> Figure:
        """Draw the five panels (`attribkit.features.plot`); ``denormalize`` is a `LoadedModel`'s."""
        from attribkit.features.draw.occlusion_study import plot

        return plot(self, denormalize)


def occlusion_study(
    model: nn.Module,
    inputs: Tensor,
    target: int | None = None,
    *,
    layer: str | None = None,
    channel: int | None = None,
    others: Inputs | Tensor | None = None,
    keep: int = 3,
    window: int | tuple[int, int] | None = None,
    stride: int | tuple[int, int] | None = None,
    fill: float = 0.0,
    method: Any = "deconvnet",
    labels: Sequence[str] | None = None,
) -> OcclusionStudy:
    """Slide a square over an image and record a feature map, the class and the answer (paper §4.2, Fig. 6).

    Parameters
    ----------
    model
        A classifier; it runs in eval mode and is left as it was.
    inputs
        One image [1, C, H, W].
    target
        The class; None: the model's answer.
    layer
        Where the feature map is; None: the top layer with maps, ``relu5`` of ZFNet (of a transformer the last block).
    channel
        The feature map; None: the one with the largest total activity on the clean image.
    others
        Further images, of which the ``keep`` that drive the map most strongly are projected beside this one.
    keep
        How many of them.
    window, stride, fill
        The square, its step and its value, as for the method ``occlusion``.
    method
        What projects: a table of inverse layers.
    labels
        The classes' names.

    Returns
    -------
    OcclusionStudy

    Raises
    ------
    InputError
        Not one image, or a class, channel, window or stride out of range.
    UnknownNameError
        The model has no such layer.
    """
    model = usable_model(model)
    check_inputs(inputs)
    if len(inputs) != 1:
        raise InputError(f"an occlusion study takes one image [1, C, H, W], got {tuple(inputs.shape)}")
    if as_int("keep", keep) < 0:
        raise InputError(f"keep must be an int from 0, got {keep!r}")
    layer = top_maps(model, inputs, pooled=False) if layer is None else layer
    totals, probabilities = _clean(model, inputs, layer)
    if channel is None:
        channel = int(totals.argmax())
    if not 0 <= as_int("channel", channel) < len(totals):
        raise InputError(f"channel {channel} is out of range: layer {layer!r} has {len(totals)} channels")
    if target is None:
        target = int(probabilities.argmax())
    if not 0 <= as_int("target", target) < len(probabilities):
        raise InputError(f"target class {target} is out of range: the model has {len(probabilities)} classes")
    boxes = _windows(inputs, window, stride)
    # before the long part: an image that cannot be read, and a method that cannot project, end it
    found = _driving(model, others, layer, channel, keep) if others is not None else []
    projected = attribkit.project(model, inputs, layer, [channel], method=method)
    swept = attribkit.attribute(
        model,
        inputs,
        "occlusion",
        target,
        window=window,
        stride=stride,
        fill=fill,
        score="probability",
        unit_layer=layer,
        unit_channel=channel,
    )
    pictures = [attribkit.project(model, x, layer, [channel], method=method).values[0, 0] for _, x in found]
    shape = tuple(inputs.shape[1:])
    return OcclusionStudy(
        inputs=inputs[0].detach().cpu(),
        windows=boxes,
        layer=layer,
        channel=channel,
        activity=swept.extras["unit_map"][0].double().cpu().numpy(),
        clean_activity=float(totals[channel]),
        target=target,
        probability=swept.extras["score_map"][0].double().cpu().numpy(),
        clean_probability=float(probabilities[target]),
        labels=swept.extras["label_map"][0].cpu().numpy(),
        projection=projected.values[0, 0].float().cpu().numpy(),
        others=torch.cat([x for _, x in found]).cpu() if found else torch.zeros(0, *shape),
        other_projections=torch.stack(pictures).float().cpu().numpy()
        if pictures
        else np.zeros((0, *shape), np.float32),
        other_ids=tuple(name for name, _ in found),
        names=tuple(labels) if labels is not None else None,
        fill=float(fill),
    )


def _totals(maps: Tensor, layout: str | None, layer: str) -> Tensor:
    """Return each map's activity summed over positions, [N, channels]."""
    if layout is None:
        raise InputError(f"layer {layer!r} has output {tuple(maps.shape)}: its feature dimension is not known")
    return maps.movedim(layout.index("C"), 1).flatten(2).sum(2) if maps.ndim > 2 else maps


def _clean(model: nn.Module, inputs: Tensor, layer: str) -> tuple[Tensor, Tensor]:
    with pristine(model, inputs):
        seen = look(model, inputs, [layer])
        return _totals(seen.values[layer], seen.layouts[layer], layer)[0], seen.probabilities()[0]


def _driving(
    model: nn.Module, others: Inputs | Tensor, layer: str, channel: int, keep: int
) -> list[tuple[str, Tensor]]:
    """Return the names and inputs [1, C, H, W] of the images with the map's strongest activation, at most ``keep``."""
    images = others if isinstance(others, Inputs) else Inputs(others)
    peaks = []
    with pristine(model, images.one(0)):
        for rows in track(images.rows(32), "other images"):
            seen = look(model, images.batch(rows), [layer])
            layout = seen.layouts[layer] or "NCHW"
            maps = seen.values[layer].select(layout.index("C"), channel).reshape(len(rows), -1)
            peaks.append(maps.amax(1).cpu())
    order = torch.cat(peaks).argsort(descending=True, stable=True)[:keep].tolist()
    return [(images.ids[i], images.one(i)) for i in order]


def _windows(inputs: Tensor, window: Any, stride: Any) -> npt.NDArray[np.int64]:
    """Return the boxes of the square [R, S, 4], by the method's own rule."""
    height, width = inputs.shape[-2:]
    (tops, bottoms), (lefts, rights) = windows(height, width, window, stride)
    rows, columns = zip(tops, bottoms, strict=True), list(zip(lefts, rights, strict=True))
    return np.asarray([[(y0, x0, y1, x1) for x0, x1 in columns] for y0, y1 in rows], dtype=np.int64)
