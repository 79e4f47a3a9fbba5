"""Receptive fields: the pixels that each position of a layer's map can depend on, borders included."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from attribkit.checks import check_inputs, explain_misfits, usable_model
from attribkit.engine.invert import vocabulary
from attribkit.engine.state import pristine
from attribkit.engine.units import Grid, token_grid
from attribkit.engine.walk import Walk
from attribkit.errors import InputError
from attribkit.features._influence import Influence


class Box(NamedTuple):
    """Pixels ``top <= y < bottom``, ``left <= x < right``."""

    top: int
    left: int
    bottom: int
    right: int


@dataclass(frozen=True, eq=False)
class ReceptiveField:
    """The receptive fields of one layer's units.

    A field is the bounding box of the pixels that the unit can depend on by the model's structure: weights count as
    different from zero, and a max pool as depending on its whole window.

    Attributes
    ----------
    layer, layout : str
        The layer, and where the features are in its output.
    image : (int, int)
        Height and width of the model's input, in pixels.
    size : (int, int)
        Height and width of the field of a unit far from the border (of the largest there is, where none is).
    stride, offset : (int, int) or None
        Away from the border the field of (y, x) begins at pixel ``offset + (y, x) * stride``; None where the fields
        follow no such rule, as where they are the whole image.
    unknown : tuple of str
        Operations on the way that are not known: what comes after one counts as depending on all it was given.
    """

    layer: str
    layout: str
    image: tuple[int, int]
    size: tuple[int, int]
    stride: tuple[int, int] | None
    offset: tuple[int, int] | None
    grid: Grid
    unknown: tuple[str, ...] = ()
    _boxes: NDArray[np.int32] = field(default_factory=lambda: np.zeros((1, 1, 4), np.int32), repr=False)

    @property
    def whole(self) -> bool:
        """Whether every unit's field is the whole image."""
        return bool((self._boxes == (0, 0, *self.image)).all())

    def box(self, position: int | tuple[int, int], channel: int | None = None, *, clipped: bool = True) -> Box:
        """Return the field of the unit at a position.

        Parameters
        ----------
        position
            As `attribkit.Unit` takes it: (row, column), or an index in row order (of a token).
        channel
            The feature map; None: the box around those of all maps (they differ where branches of different depth
            are concatenated).
        clipped
            Whether to leave out what lies beyond the image. Otherwise the box is that of a unit far from the border,
            moved to the position, and can begin before pixel 0; where `stride` is None it is clipped all the same.

        Raises
        ------
        InputError
            There is no such position or channel.
        """
        flat = self.grid.flat(position, self.layer)
        if not clipped and self.stride is not None and self.offset is not None:
            row, column = divmod(flat - self.grid.prefix, self.grid.columns or 1)
            top, left = self.offset[0] + row * self.stride[0], self.offset[1] + column * self.stride[1]
            return Box(top, left, top + self.size[0], left + self.size[1])
        boxes = self._boxes[:, flat]
        if channel is not None and len(boxes) > 1:
            if not 0 <= channel < len(boxes):
                raise InputError(f"channel {channel} is out of range: layer {self.layer!r} has {len(boxes)} channels")
            boxes = boxes[channel : channel + 1]
        seen = boxes[boxes[:, 2] > boxes[:, 0]]
        if not len(seen):
            return Box(0, 0, 0, 0)  # it sees nothing but padding
        return Box(*map(int, (*seen[:, :2].min(0), *seen[:, 2:].max(0))))


def receptive_field(model: nn.Module, inputs: Tensor | Sequence[int], layer: str) -> ReceptiveField:
    """Return the receptive fields of a layer's units.

    Parameters
    ----------
    model
        Any torch module; it runs once, in eval mode, and is left as it was.
    inputs
        Float tensor [N, C, H, W] on the model's device, of which only the size counts, or that size (C, H, W).
    layer
        A module call or site, as for `attribkit.Unit`.

    Raises
    ------
    InputError
        There is no such layer, or its output has no features that are known.
    """
    return receptive_fields(model, inputs, [layer])[layer]


def receptive_fields(
    model: nn.Module, inputs: Tensor | Sequence[int], layers: Sequence[str]
) -> dict[str, ReceptiveField]:
    """Return the receptive fields of several layers after one forward pass: see `receptive_field`."""
    model = usable_model(model)
    like: Any = next(model.parameters(), torch.zeros(()))
    if not isinstance(inputs, Tensor):
        generator = torch.Generator().manual_seed(0)
        inputs = torch.rand(1, *inputs, generator=generator).to(like.device, like.dtype)
    check_inputs(inputs)
    with pristine(model, inputs), explain_misfits(model, inputs):
        # with gradients, so that a tensor made where no function mode looks can be told from a constant
        with torch.enable_grad():
            image = inputs[:1].detach().clone().requires_grad_() * 1
            influence = Influence(image, vocabulary(), [*model.parameters(), *model.buffers()])
            watch = _Watch(model, influence, layers)
            with influence:
                watch.run(image)
        return {layer: _field(model, watch, influence, layer) for layer in layers}


class _Watch(Walk):
    """A walk that keeps the reach of what it catches."""

    def __init__(self, model: nn.Module, influence: Influence, layers: Sequence[str]) -> None:
        super().__init__(model, vocabulary=vocabulary(), layers=layers, stop=True)
        self.influence = influence
        self.reaches: dict[str, Any] = {}

    def _catch(self, value: Tensor | None, name: str) -> None:
        if value is not None and name not in self.reaches:
            reach = self.influence.of(value)
            if reach is not None:
                self.reaches[name] = tuple(bound.clone() for bound in reach), tuple(self.influence.unknown)
        super()._catch(value, name)


def _field(model: nn.Module, watch: _Watch, influence: Influence, layer: str) -> ReceptiveField:
    captured = watch.catch(layer)
    if captured.layout is None or len(captured.layout) != captured.value.ndim:
        raise InputError(
            f"layer {layer!r} has output {tuple(captured.value.shape)} in which the feature dimension is not known"
        )
    dim = captured.layout.index("C")
    image = influence.image
    reach, unknown = watch.reaches.get(layer, (None, ()))
    maps = [
        bound[:1].movedim(dim, 1).flatten(2)[0] if captured.value.ndim > 2 else bound[:1].T for bound in reach or ()
    ]
    if maps:
        top, left, bottom, right = (bound.detach().cpu().numpy() for bound in maps)
        nothing = ~np.isfinite(top)
        boxes = np.stack([-top, -left, bottom, right], -1)
        boxes[nothing] = 0
    else:
        boxes = np.zeros((1, 1, 4))
    boxes = boxes.astype(np.int32)
    if len(boxes) > 1 and (boxes == boxes[:1]).all():
        boxes = boxes[:1]
    grid = token_grid(captured.value, captured.layout, model, captured.image)
    size, stride, offset = _rule(boxes, grid, image)
    return ReceptiveField(layer, captured.layout, image, size, stride, offset, grid, unknown, boxes)


def _rule(boxes: NDArray[np.int32], grid: Grid, image: tuple[int, int]) -> tuple[Any, Any, Any]:
    """Return size, stride and offset of the fields; no stride and offset where the fields follow no rule.

    The rule is read off the boxes that do not touch the border, and must, cut to the image, cover every box.
    """
    union = np.concatenate([boxes[..., :2].min(0), boxes[..., 2:].max(0)], -1)
    largest = tuple(int(v) for v in (union[:, 2:] - union[:, :2]).max(0))
    if grid.rows is None or grid.columns is None or len(union) - grid.prefix != grid.rows * grid.columns:
        return largest, None, None
    table = union[grid.prefix :].reshape(grid.rows, grid.columns, 4)
    found = [
        _axis(table[:, table.shape[1] // 2, 0::2], table[:, :, 0::2], image[0]),
        _axis(table[table.shape[0] // 2, :, 1::2], table[:, :, 1::2].swapaxes(0, 1), image[1]),
    ]
    if any(axis is None for axis in found):
        return largest, None, None
    return tuple(zip(*found, strict=True))


def _axis(line: NDArray[np.int32], all_lines: NDArray[np.int32], length: int) -> tuple[int, int, int] | None:
    """Return (size, stride, offset) along an axis from its intervals [n, 2]; None where they follow no rule."""
    if (all_lines != line[:, None]).any():
        return None
    low, high = line[:, 0], line[:, 1]
    # the beginning of a field is free where it lies inside, its end likewise
    starts, ends = np.flatnonzero(low > 0), np.flatnonzero(high < length)
    steps = {int(s) for free, edge in ((starts, low), (ends, high)) for s in np.diff(edge[free])}
    if len(steps) != 1 or 0 in steps or not len(starts) or not len(ends):
        return None
    stride = steps.pop()
    offset = int(low[starts[0]]) - int(starts[0]) * stride
    size = int(high[ends[-1]]) - int(ends[-1]) * stride - offset
    places = np.arange(len(line)) * stride + offset
    if size <= 0 or (np.clip(places, 0, length) > low).any() or (np.clip(places + size, 0, length) < high).any():
        return None
    return size, stride, offset
