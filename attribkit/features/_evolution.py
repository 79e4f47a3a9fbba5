"""Features during training (paper Fig. 4): each map's strongest activation, projected, snapshot by snapshot."""

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
from attribkit.checks import usable_model
from attribkit.datasets import ImageSource
from attribkit.engine.state import pristine
from attribkit.engine.units import select, strongest
from attribkit.errors import InputError, as_int
from attribkit.features._inputs import Inputs, Preprocess
from attribkit.features._observe import look
from attribkit.features._snapshots import Snapshots, check_snapshots, filled
from attribkit.features._tables import write_csv
from attribkit.features.fields import receptive_field
from attribkit.models.building import LoadedModel
from attribkit.progress import track

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Evolution", "evolution"]


@dataclass(frozen=True, eq=False)
class Evolution:
    """What a layer's maps responded to most strongly, epoch by epoch.

    E epochs, K maps.

    Attributes
    ----------
    layer
        The layer.
    channels, epochs
        The maps [K] and the epochs [E].
    ids
        The images' ids; ``image`` counts in them.
    image, position
        int64 [E, K]: which image holds the strongest activation of all, and its flat position in the map.
    activation
        float64 [E, K].
    projections
        float32 [E, K, C, H, W]: that activation carried to pixel space, all others zero.
    boxes
        int64 [E, K, 4]: top, left, bottom, right (half-open) of the unit's receptive field.
    method
        How it was projected.
    """

    layer: str
    channels: tuple[int, ...]
    epochs: tuple[int, ...]
    ids: Sequence[str]
    image: npt.NDArray[np.int64]
    position: npt.NDArray[np.int64]
    activation: npt.NDArray[np.float64]
    projections: npt.NDArray[np.float32]
    boxes: npt.NDArray[np.int64]
    method: str

    @property
    def jumps(self) -> npt.NDArray[np.bool_]:
        """Whether another image has taken over since the snapshot before, [E, K]; never at the first."""
        return np.concatenate([np.zeros_like(self.image[:1], dtype=bool), self.image[1:] != self.image[:-1]])

    @property
    def settled(self) -> npt.NDArray[np.int64]:
        """The epoch of the first snapshot from which on a map's image stays the same, [K]."""
        last = [max([0, *np.flatnonzero(column)]) for column in self.jumps.T]
        return np.asarray([self.epochs[row] for row in last], dtype=np.int64)

    def to_csv(self, path: str | os.PathLike[str]) -> Path:
        """Write one row an epoch and map: where the strongest activation is, how strong, and whether it jumped."""
        header = ["epoch", "layer", "channel", "activation", "image", "position", "jump", *_SIDES]
        rows = [
            [
                *(epoch, self.layer, channel, self.activation[e, k], self.ids[self.image[e, k]], self.position[e, k]),
                *(int(self.jumps[e, k]), *self.boxes[e, k]),
            ]
            for k, channel in enumerate(self.channels)
            for e, epoch in enumerate(self.epochs)
        ]
        return write_csv(path, header, rows)

    def plot(self) -> Figure:
        """Draw a strip for each map, epochs from left to right (`attribkit.features.plot`)."""
        from attribkit.features.draw.evolution import plot

        return plot(self)


_SIDES = ("top", "left", "bottom", "right")


def evolution(
    snapshots: Snapshots,
    source: Tensor | Inputs | ImageSource | str | os.PathLike[str],
    layer: str,
    channels: Sequence[int],
    *,
    model: LoadedModel | nn.Module | None = None,
    preprocess: Preprocess | None = None,
    method: Any = "deconvnet",
    limit: int | None = None,
    split: str | None = None,
    batch_size: int = 64,
) -> Evolution:
    """Follow feature maps through training (paper §4, Fig. 4).

    At each snapshot every image goes through the model once. Of each map the strongest activation over all images and
    positions is kept, the first on ties, and projected to pixel space on its own.

    Parameters
    ----------
    snapshots
        Maps epochs to models, or to files of weights for ``model`` (see `find_snapshots`).
    source
        Inputs [N, C, H, W], `Inputs`, or images (an `ImageSource` or what `attribkit.datasets.open_images` opens).
    layer, channels
        The feature maps, by the layer's name and their indices.
    model
        The network that files fill; it is copied, not changed. A `LoadedModel` brings the preprocessing.
    preprocess
        Makes an input of an image, where ``model`` is none that brings it.
    method
        What projects: a table of inverse layers.
    limit, split
        Take the first so many images, and those of one part of the source.
    batch_size
        Images a forward pass.

    Returns
    -------
    Evolution

    Raises
    ------
    InputError
        No snapshot, no channel, one out of range, or images without preprocessing.
    CheckpointError
        A snapshot's file cannot be read or does not fit.
    UnknownNameError
        The model has no such layer.
    """
    snapshots = check_snapshots(snapshots)
    maps = _channels(channels)
    if as_int("batch_size", batch_size) < 1:
        raise InputError(f"batch_size must be a positive int, got {batch_size!r}")
    network, name = (model.model, model.name) if isinstance(model, LoadedModel) else (model, "the model")
    if preprocess is None and isinstance(model, LoadedModel):
        preprocess = model.preprocess
    if isinstance(source, Inputs):
        inputs = source
    else:
        inputs = Inputs(source, preprocess, limit=limit, split=split, device=_device(network, snapshots))
    images, places, values, projections, boxes = [], [], [], [], []
    fields = None  # they depend on the structure alone
    for epoch in track(list(snapshots), "snapshots"):
        current = usable_model(filled(snapshots[epoch], network, name))
        image, place, value = _strongest(current, inputs, layer, maps, batch_size)
        pictures = [
            attribkit.project(current, inputs.one(int(i)), layer, [channel], method=method, position=int(p)).values[
                0, 0
            ]
            for i, p, channel in zip(image, place, maps, strict=True)
        ]
        images.append(image)
        places.append(place)
        values.append(value)
        projections.append(torch.stack(pictures).float().cpu().numpy())
        fields = fields or receptive_field(current, inputs.one(0), layer)
        boxes.append([fields.box(int(p), channel) for p, channel in zip(place, maps, strict=True)])
    used = attribkit.api.find_method(method).name
    return Evolution(
        layer,
        maps,
        tuple(snapshots),
        inputs.ids,
        np.stack(images),
        np.stack(places),
        np.stack(values),
        np.stack(projections),
        np.asarray(boxes, dtype=np.int64),
        used,
    )


def _strongest(
    model: nn.Module, inputs: Inputs, layer: str, channels: tuple[int, ...], batch_size: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Return for each channel the image, the flat position and the value of its strongest activation."""
    count = len(channels)
    image, place = np.zeros(count, np.int64), np.zeros(count, np.int64)
    value = np.full(count, -np.inf)
    with pristine(model, inputs.one(0)):
        for rows in track(inputs.rows(batch_size), f"images, {layer}"):
            seen = look(model, inputs.batch(rows), [layer])
            maps, layout = seen.values[layer], seen.layouts[layer]
            if layout is None:
                raise InputError(f"layer {layer!r} has output {tuple(maps.shape)}: its feature dimension is not known")
            features = maps.shape[layout.index("C")]
            for k, channel in enumerate(channels):
                if channel >= features:
                    raise InputError(f"channel {channel} is out of range: layer {layer!r} has {features} channels")
                flat = strongest(maps, channel, layout)
                peaks = select(maps, channel, layout).gather(1, flat[:, None])[:, 0]
                best = int(peaks.argmax())
                best = int((peaks == peaks[best]).to(torch.uint8).argmax())  # the first on ties
                if float(peaks[best]) > value[k]:
                    image[k], place[k], value[k] = rows.start + best, int(flat[best]), float(peaks[best])
    return image, place, value


def _channels(channels: Any) -> tuple[int, ...]:
    if isinstance(channels, str) or not hasattr(channels, "__iter__"):
        raise InputError(f"channels must be a sequence of ints, got {channels!r}")
    found = tuple(as_int("each of channels", channel) for channel in channels)
    if not found or len(set(found)) != len(found) or min(found) < 0:
        raise InputError(f"channels must be at least one int from 0, none of them twice, got {list(found)}")
    return found


def _device(model: nn.Module | None, snapshots: Snapshots) -> torch.device:
    known = model if model is not None else next((s for s in snapshots.values() if isinstance(s, nn.Module)), None)
    first = next(known.parameters(), None) if known is not None else None
    return first.device if first is not None else torch.device("cpu")
