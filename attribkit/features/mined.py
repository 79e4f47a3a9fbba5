"""What mining found: per feature map the images and positions that excite it most."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attribkit._kept import DAMAGE, one_line, read_kept
from attribkit.attribution import write_atomically
from attribkit.engine.units import Grid
from attribkit.errors import InputError
from attribkit.features._topk import Top

FORMAT = 1


class Hit(NamedTuple):
    """One of a map's strongest activations."""

    channel: int
    rank: int
    image: int
    position: int | tuple[int, int]
    value: float


@dataclass(eq=False)
class MinedLayer:
    """One layer's strongest activations.

    Attributes
    ----------
    layer, layout : str
        The layer, and where the features are in its output.
    channels : tuple of int
        The feature maps that were looked at, K of them.
    grid : Grid
        How its positions are counted.
    top : Top
        ``values``, ``images`` and ``positions`` [K, top]; see `Top`.
    """

    layer: str
    layout: str
    channels: tuple[int, ...]
    grid: Grid
    top: Top

    def place(self, flat: int) -> int | tuple[int, int]:
        """Return a flat position as `attribkit.Unit` takes it: (row, column) where there is a map, else an index."""
        if self.grid.rows is None or self.grid.columns is None or flat < self.grid.prefix:
            return flat
        row, column = divmod(flat - self.grid.prefix, self.grid.columns)
        return row, column

    def hits(self, index: int) -> Iterator[Hit]:
        """Go through the strongest activations of the map ``channels[index]``, the strongest first."""
        rows = (getattr(self.top, name)[index].tolist() for name in ("values", "images", "positions"))
        for rank, (value, image, flat) in enumerate(zip(*rows, strict=True)):
            if image >= 0:
                yield Hit(self.channels[index], rank, image, self.place(flat), value)


@dataclass(eq=False)
class Mined:
    """The strongest activations of some layers over a data set.

    Attributes
    ----------
    layers : dict of str to MinedLayer
    ids : tuple of str
        The images' ids.
    skipped : tuple of (int, str)
        Images that could not be used: index and reason.
    config : dict
        What was mined, and how.
    unshown : tuple of (int, str)
        Images among the strongest that could not be projected, having gone since they were mined: index and reason.
    """

    layers: dict[str, MinedLayer]
    ids: tuple[str, ...]
    skipped: tuple[tuple[int, str], ...] = ()
    config: dict[str, Any] = field(default_factory=dict)
    unshown: tuple[tuple[int, str], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return {
            "config": self.config,
            "images": len(self.ids),
            "skipped": [{"image": self.ids[index], "reason": reason} for index, reason in self.skipped],
            "layers": {
                name: {
                    "layout": layer.layout,
                    "map": [layer.grid.rows, layer.grid.columns],
                    "features": {
                        str(channel): [
                            {
                                "rank": hit.rank + 1,
                                "image": self.ids[hit.image],
                                "index": hit.image,
                                "position": hit.position,
                                "value": hit.value,
                            }
                            for hit in layer.hits(i)
                        ]
                        for i, channel in enumerate(layer.channels)
                    },
                }
                for name, layer in self.layers.items()
            },
        }


@dataclass(eq=False)
class Progress:
    """How far mining has come: which chunks of images are done, and what they held.

    Attributes
    ----------
    done : BoolTensor
        One a chunk.
    layers : dict of str to MinedLayer
        Empty before the first chunk.
    skipped : dict of int to str
        Images that could not be used, and why.
    """

    done: Tensor
    layers: dict[str, MinedLayer] = field(default_factory=dict)
    skipped: dict[int, str] = field(default_factory=dict)

    def merge(self, other: Progress) -> None:
        """Take over what another has done."""
        self.done |= other.done
        self.skipped.update(other.skipped)
        for name, theirs in other.layers.items():
            mine = self.layers.get(name)
            top = theirs.top if mine is None else mine.top.merged(theirs.top)
            self.layers[name] = MinedLayer(name, theirs.layout, theirs.channels, theirs.grid, top)

    def undo_skipped(self, size: int) -> None:
        """Take the chunks, of ``size`` images, in which one was skipped for not done; what they held is kept.

        To mine them again changes nothing for the images that were not skipped: each counts once.
        """
        for index in self.skipped:
            self.done[index // size] = False
        self.skipped.clear()

    def save(self, path: Path, config: dict[str, Any]) -> None:
        """Write everything to a safetensors file, whole or not at all."""
        from safetensors.torch import save

        tensors, rows = {"done": self.done.to(torch.uint8)}, {}
        for name, layer in self.layers.items():
            grid = layer.grid
            rows[name] = [layer.layout, list(layer.channels), [grid.rows, grid.columns, grid.prefix, grid.count]]
            for part in ("values", "images", "positions"):
                tensors[f"{name}.{part}"] = getattr(layer.top, part).contiguous()
        header = {"format": FORMAT, "config": config, "layers": rows, "skipped": list(self.skipped.items())}
        write_atomically(path, save(tensors, {"attribkit": json.dumps(header)}))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> tuple[Progress, dict[str, Any]]:
        """Read what `save` wrote: the progress and the configuration.

        Raises
        ------
        InputError
            The file is no such file.
        """
        try:
            header, tensors = read_kept(path)
            if header["format"] != FORMAT:
                raise KeyError(f"format {header['format']}")
            layers = {
                name: _layer_from(name, layout, channels, grid, tensors)
                for name, (layout, channels, grid) in header["layers"].items()
            }
            skipped = {int(index): str(reason) for index, reason in header["skipped"]}
            done = tensors["done"]
            if done.dtype != torch.uint8 or done.ndim != 1:
                raise ValueError("its note of what is done is none")
            return cls(done.bool(), layers, skipped), dict(header["config"])
        except (OSError, *DAMAGE) as error:
            raise InputError(f"{os.fspath(path)}: is not the state of mining features: {one_line(error)}") from error


def _layer_from(name: str, layout: Any, channels: Any, grid: Any, tensors: dict[str, Tensor]) -> MinedLayer:
    """Return a layer that a file held; ValueError where its parts do not fit each other."""
    rows, columns, prefix, count = grid
    wanted = (rows, columns) if rows is not None or columns is not None else ()
    numbers = (*wanted, prefix, count, *channels)
    if not all(type(n) is int and n >= 0 for n in numbers) or 0 in wanted or not isinstance(layout, str):
        raise ValueError(f"the places of layer {name!r:.80} are no numbers")
    values, images, positions = (tensors[f"{name}.{part}"] for part in ("values", "images", "positions"))
    fits = values.ndim == 2 and values.shape == images.shape == positions.shape and len(values) == len(channels)
    if not fits or not values.is_floating_point() or images.dtype != torch.long or positions.dtype != torch.long:
        raise ValueError(f"the tensors of layer {name!r:.80} do not fit each other")
    if images.numel() and (int(images.min()) < -1 or int(positions.max()) >= max(count, 1)):
        raise ValueError(f"layer {name!r:.80} has images or positions out of range")
    return MinedLayer(name, layout, tuple(channels), Grid(rows, columns, prefix, count), Top(values, images, positions))
