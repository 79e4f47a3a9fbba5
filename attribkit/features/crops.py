"""Projecting mined activations to pixels, each alone, cut to its unit's receptive field beside the image's patch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import attribkit
from attribkit._kept import DAMAGE, read_tensors
from attribkit.api import project_each
from attribkit.datasets import ImageSource
from attribkit.engine.state import same_generators
from attribkit.errors import ImageError, InputError
from attribkit.features.fields import Box, ReceptiveField
from attribkit.features.mined import Hit, MinedLayer
from attribkit.registry import one_line
from attribkit.runs.computing import free_memory, is_out_of_memory
from attribkit.targets import Target

if TYPE_CHECKING:
    from attribkit.models.loading import LoadedModel

UNITS_AT_ONCE = 16


@dataclass(frozen=True)
class RowUnits(Target):
    """One unit of a layer a sample, each with a feature map and a position of its own.

    Attributes
    ----------
    layout : str
        Where the features are.
    channels, positions : LongTensor [N]
        Each sample's feature map and flat position.
    """

    layout: str = "NCHW"
    channels: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    positions: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))

    @classmethod
    def of(cls, layer: str, layout: str, channels: Sequence[int], positions: Sequence[int]) -> RowUnits:
        """Return the target of these units of a layer."""
        target = cls(len(channels), layout=layout, channels=torch.tensor(channels), positions=torch.tensor(positions))
        object.__setattr__(target, "layer", layer)
        return target

    def read(self, observed: Any, index: Tensor | None = None) -> Tensor:
        """Return the units' activations [B]."""
        value: Tensor = observed.value.movedim(self.layout.index("C"), 1)
        return value[self._places(value, index)]

    def start(self, observed: Any, index: Tensor | None, unit_signal: str) -> tuple[Tensor, Tensor]:
        """Return the layer's output and a signal that is zero but for each sample's unit."""
        value: Tensor = observed.value
        mask = torch.zeros_like(value, memory_format=torch.contiguous_format).detach()
        channels_second = mask.movedim(self.layout.index("C"), 1)
        channels_second[self._places(channels_second, index)] = 1
        return value, mask * value.detach() if unit_signal == "activation" else mask

    def take(self, index: Tensor) -> Target:
        """Return the target of some samples."""
        return RowUnits.of(
            str(self.layer), self.layout, self.channels[index.cpu()].tolist(), self.positions[index.cpu()].tolist()
        )

    def describe(self) -> str:
        """Say what it is."""
        return f"{self.size} units of {self.layer}"

    def _places(self, value: Tensor, index: Tensor | None) -> tuple[Tensor, ...]:
        """Return where the rows' units are in a layer's output whose features come second."""
        picked = torch.arange(self.size) if index is None else index.cpu()
        positions = self.positions[picked]
        spatial = torch.unravel_index(positions, value.shape[2:]) if value.ndim > 2 else ()
        places = (torch.arange(len(value)), self.channels[picked], *spatial)
        return tuple(place.to(value.device) for place in places)


@dataclass(eq=False)
class Crops:
    """Projections and image patches of some feature maps' strongest activations.

    All are cut to windows of one size: the receptive field, or the image where the field is larger. What of a window
    lies beyond the image is 0 in a projection and mid-grey in a patch.

    Attributes
    ----------
    channels : tuple of int
        The feature maps, K of them.
    projections : Tensor [K, top, C, h, w]
        Signed, float32, as the method returned them.
    patches : Tensor [K, top, C, h, w]
        What the model saw, uint8, 0 to 255.
    boxes : Tensor [K, top, 4]
        Each unit's field within the image: top, left, bottom, right, int32.
    missing : dict of int to str
        Images that could not be had, and why: their places are empty. It is not written.
    """

    channels: tuple[int, ...]
    projections: Tensor
    patches: Tensor
    boxes: Tensor
    missing: dict[int, str] = field(default_factory=dict, init=False)

    def save(self, path: Path, label: str) -> None:
        """Write everything to a safetensors file, whole or not at all; ``label`` is kept in it."""
        from safetensors.torch import save

        from attribkit.attribution import write_atomically

        tensors = {name: getattr(self, name).contiguous() for name in ("projections", "patches", "boxes")}
        tensors["channels"] = torch.tensor(self.channels)
        write_atomically(path, save(tensors, {"attribkit": label}))

    @classmethod
    def load(cls, path: str | os.PathLike[str], label: str | None = None) -> Crops | None:
        """Read what `save` wrote; None where there is no such file, or one of another label."""
        try:
            about, tensors = read_tensors(path)
            channels, projections, patches, boxes = (
                tensors[name] for name in ("channels", "projections", "patches", "boxes")
            )
        except (OSError, *DAMAGE):
            return None
        fits = (
            channels.dtype == torch.long
            and projections.dtype == torch.float32
            and patches.dtype == torch.uint8
            and boxes.dtype == torch.int32
            and projections.ndim == 5
            and projections.shape == patches.shape
            and boxes.shape == (*projections.shape[:2], 4)
            and channels.shape == projections.shape[:1]
        )
        if not fits or label not in (None, about.get("attribkit")):
            return None
        return cls(tuple(channels.tolist()), projections, patches, boxes)


def project_mined(
    loaded: LoadedModel,
    source: ImageSource,
    layer: MinedLayer,
    fields: ReceptiveField,
    maps: Sequence[int],
    method: str = "deconvnet",
) -> Crops:
    """Project mined activations, each with all others zero, and cut them out (paper §2.1 and Fig. 2).

    Parameters
    ----------
    loaded
        The model, with its preprocessing.
    source
        The images that were mined.
    layer, fields
        What was mined of the layer, and its receptive fields.
    maps
        Which of ``layer.channels``, by index.
    method
        The method's name.
    """
    like = next((t for t in loaded.model.parameters() if t.is_floating_point()), torch.zeros(()))
    hits = [(row, hit) for row, index in enumerate(maps) for hit in layer.hits(index)]
    if not hits:
        raise InputError(f"layer {layer.layer!r}: nothing was mined")
    inputs, missing = {}, {}
    with same_generators(torch.device("cpu")):
        for i in dict.fromkeys(hit.image for _, hit in hits):
            try:
                inputs[i] = loaded.preprocess(source.load(i)).to(like)
            except Exception as error:  # it was there when it was mined
                missing[i] = str(error) if isinstance(error, ImageError) else one_line(error)
    hits = [(row, hit) for row, hit in hits if hit.image in inputs]
    height, width = _window_size(fields)
    colours = len(next(iter(inputs.values()))) if inputs else loaded.input_size[0]
    shape = (len(maps), layer.top.values.shape[1], colours, height, width)
    crops = Crops(
        tuple(layer.channels[index] for index in maps),
        torch.zeros(shape),
        torch.full(shape, 128, dtype=torch.uint8),
        torch.zeros(*shape[:2], 4, dtype=torch.int32),
    )
    crops.missing = missing
    for part in _parts(sorted(hits, key=lambda item: item[1].image), UNITS_AT_ONCE):
        batch = torch.stack([inputs[hit.image] for _, hit in part])
        flats = [_flat(layer, hit) for _, hit in part]
        values = _project(loaded, batch, layer, [hit.channel for _, hit in part], flats, method).float().cpu()
        shown = (loaded.denormalize(batch.cpu()).clamp(0, 1) * 255).round().to(torch.uint8)
        for (row, hit), value, picture in zip(part, values, shown, strict=True):
            box = fields.box(hit.position, hit.channel)
            crops.boxes[row, hit.rank] = torch.tensor(box, dtype=torch.int32)
            top, left = _corner(fields, hit, (height, width))
            _paste(value, crops.projections[row, hit.rank], top, left)
            _paste(picture, crops.patches[row, hit.rank], top, left)
    return crops


def _project(
    loaded: LoadedModel, batch: Tensor, layer: MinedLayer, channels: list[int], flats: list[int], method: str
) -> Tensor:
    """Return the maps [N, C, H, W] of one unit a sample; what there is no memory for is computed in halves."""
    try:
        return _project_at_once(loaded, batch, layer, channels, flats, method)
    except Exception as error:
        if len(batch) == 1 or not is_out_of_memory(error):
            raise
    free_memory(batch.device)
    half = (len(batch) + 1) // 2
    parts = [
        _project(loaded, batch[part], layer, channels[part], flats[part], method)
        for part in (slice(half), slice(half, None))
    ]
    return torch.cat(parts)


def _project_at_once(
    loaded: LoadedModel, batch: Tensor, layer: MinedLayer, channels: list[int], flats: list[int], method: str
) -> Tensor:
    """Project on rectangles where that is known, else by `attribute`."""
    if layer.layout == "NCHW":
        maps, places = (torch.tensor(numbers, device=batch.device) for numbers in (channels, flats))
        found = project_each(loaded.model, batch, layer.layer, maps, places, method)
        if found is not None:
            return found
    target = RowUnits.of(layer.layer, layer.layout, channels, flats)
    return attribkit.attribute(loaded.model, batch, method=method, target=target).values


def _flat(layer: MinedLayer, hit: Hit) -> int:
    return layer.grid.flat(hit.position, layer.layer)


def _window_size(fields: ReceptiveField) -> tuple[int, int]:
    return min(fields.size[0], fields.image[0]), min(fields.size[1], fields.image[1])


def _corner(fields: ReceptiveField, hit: Hit, window: tuple[int, int]) -> tuple[int, int]:
    """Return where a unit's window begins, before pixel 0 where its field does."""
    box: Box = fields.box(hit.position, clipped=False)
    corner = [start if size < image else 0 for start, size, image in zip(box[:2], window, fields.image, strict=True)]
    return corner[0], corner[1]


def _paste(image: Tensor, window: Tensor, top: int, left: int) -> None:
    """Copy the part of an image [C, H, W] that a window [C, h, w] at (top, left) shows."""
    bottom, right = top + window.shape[1], left + window.shape[2]
    seen = image[:, max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
    y, x = max(-top, 0), max(-left, 0)
    window[:, y : y + seen.shape[1], x : x + seen.shape[2]] = seen


def _parts(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
