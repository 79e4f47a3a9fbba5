"""What is looked at: one model with one picture, and everything that was computed of the two."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import attribkit
from attribkit.app.drawing import Array
from attribkit.app.kept import Kept
from attribkit.app.pictures import Picture
from attribkit.app.shelf import Shown
from attribkit.attribution import Attribution
from attribkit.checks import explain_misfits
from attribkit.engine.outputs import class_scores, observe
from attribkit.engine.state import pristine
from attribkit.engine.units import Grid, strongest, token_grid
from attribkit.errors import InputError, ModelError
from attribkit.features.fields import Box
from attribkit.report.figures import class_name, model_view
from attribkit.report.sections import array

KEPT = 32
"""How many results and drawings of them are kept; a map of 224×224 pixels takes 0.6 MB."""


@dataclass(frozen=True)
class Answer:
    """What the model says: its class probabilities [K], and the best classes (index, name, probability)."""

    probabilities: Array
    top: tuple[tuple[int, str, float], ...]


@dataclass(frozen=True, eq=False)
class Found:
    """An attribution, and how many seconds it took."""

    result: Attribution
    seconds: float

    @property
    def values(self) -> Array:
        """The first sample's map [C, H, W] (of a projection, the first unit's)."""
        values: Array = array(self.result.values).reshape(-1, *self.result.values.shape[-3:])[0]
        return values

    @property
    def score(self) -> float:
        """The first sample's score."""
        return float(self.result.scores.flatten()[0])


@dataclass(frozen=True, eq=False)
class FeatureMaps:
    """The feature maps of a layer on the picture.

    Attributes
    ----------
    layer
        The layer's name.
    maps
        [channels, rows, columns]; prefix tokens are left out, and what forms no grid is one row.
    order
        The channels, the one with the greatest activation first.
    places
        Each channel's strongest position, as `attribkit.Unit` takes it.
    """

    layer: str
    maps: Array
    order: tuple[int, ...]
    places: tuple[int | tuple[int, int], ...]


@dataclass(frozen=True)
class UnitFound:
    """One feature map's strongest unit: its projection and where it lies.

    Attributes
    ----------
    found
        The projection.
    position
        The unit's place in the map.
    box
        Its receptive field in the picture, or None where that is not known, for the reason in ``unknown``.
    """

    found: Found
    position: int | tuple[int, int]
    box: Box | None
    unknown: str = ""


@dataclass(eq=False)
class Subject:
    """One model with one picture.

    Parameters
    ----------
    shown
        The model.
    picture
        The picture.

    Attributes
    ----------
    kept
        Results, and drawings of them.
    """

    shown: Shown
    picture: Picture
    kept: Kept[Any] = field(default_factory=lambda: Kept(KEPT), repr=False)

    @cached_property
    def inputs(self) -> Tensor:
        """What the model is shown, [1, C, H, W]."""
        like = next(self.shown.loaded.model.parameters(), torch.zeros(()))
        return self.shown.loaded.preprocess(self.picture.open())[None].to(like)

    @cached_property
    def view(self) -> Image.Image:
        """What the model is shown, as an image."""
        return model_view(array(self.shown.loaded.denormalize(self.inputs[0].cpu())))

    @cached_property
    def answer(self) -> Answer | None:
        """What the model says; None where its output holds no class scores.

        Raises
        ------
        ModelError
            The scores are no numbers.
        """
        model = self.shown.loaded.model
        with torch.no_grad(), pristine(model, self.inputs), explain_misfits(model, self.inputs):
            output = observe(model, self.inputs, None, {})
        try:
            scores = class_scores(output)[0]
        except ModelError:
            return None
        probabilities = array(scores.detach().double().softmax(0))
        if np.isnan(probabilities).any():
            raise ModelError("the model's class scores hold NaN or infinite values")
        best = np.argsort(-probabilities, kind="stable")[:5]
        return Answer(probabilities, tuple((int(i), self.label(int(i)), float(probabilities[i])) for i in best))

    def label(self, index: int) -> str:
        """Return a class's name."""
        return class_name(index, self.shown.loaded.labels)

    def attribution(self, method: str, target: int | None = None, options: dict[str, Any] | None = None) -> Found:
        """Return a class's map; what was computed before is not computed again."""
        options = options or {}

        def compute() -> Found:
            return self._timed(
                lambda: attribkit.attribute(
                    self.shown.loaded.model, self.inputs, method=method, target=target, **options
                )
            )

        found: Found = self.kept.get_or(self._key(method, target, options), compute)
        return found

    def known(self, method: str, target: int | None = None, options: dict[str, Any] | None = None) -> Found | None:
        """Return a class's map if it was computed before."""
        found: Found | None = self.kept.get(self._key(method, target, options or {}))
        return found

    def feature_maps(self, layer: str) -> FeatureMaps:
        """Return a layer's feature maps.

        Raises
        ------
        InputError
            There is no such layer, or its output has no features that are known.
        """
        found: FeatureMaps = self.kept.get_or(("maps", layer), lambda: self._feature_maps(layer))
        return found

    def unit(self, layer: str, channel: int, method: str) -> UnitFound:
        """Project the strongest unit of a feature map.

        Raises
        ------
        InputError
            There is no such layer, channel or method, or the method cannot project.
        """
        found: UnitFound = self.kept.get_or(
            ("unit", layer, channel, method), lambda: self._unit(layer, channel, method)
        )
        return found

    def _feature_maps(self, layer: str) -> FeatureMaps:
        model = self.shown.loaded.model
        with torch.no_grad(), pristine(model, self.inputs), explain_misfits(model, self.inputs):
            captured = observe(model, self.inputs, layer, {})
        value, layout = captured.value, captured.layout
        if layout is None or len(layout) != value.ndim or len(value) != 1:
            raise InputError(
                f"layer {layer!r} has output {tuple(value.shape)} in which the feature dimension is not known"
            )
        grid = token_grid(value, layout, model, captured.image)
        flat = array(value.movedim(layout.index("C"), 1).reshape(1, value.shape[layout.index("C")], -1)[0])
        places = tuple(_place(grid, int(strongest(value, channel, layout)[0])) for channel in range(len(flat)))
        order = tuple(np.argsort(-flat.max(1), kind="stable").tolist())
        if (
            grid.rows is not None
            and grid.columns is not None
            and flat.shape[1] == grid.prefix + grid.rows * grid.columns
        ):
            maps = flat[:, grid.prefix :].reshape(len(flat), grid.rows, grid.columns)
        else:
            maps = flat[:, None, :]
        return FeatureMaps(layer, maps, order, places)

    def _unit(self, layer: str, channel: int, method: str) -> UnitFound:
        maps = self.feature_maps(layer)
        found = self._timed(lambda: attribkit.project(self.shown.loaded.model, self.inputs, layer, [channel], method))
        position = maps.places[channel]
        try:
            box = self.shown.field(layer).box(position, channel)
        except InputError as error:
            return UnitFound(found, position, None, str(error))
        return UnitFound(found, position, box)

    @staticmethod
    def _timed(compute: Callable[[], Attribution]) -> Found:
        start = time.perf_counter()
        result = compute()
        return Found(result, time.perf_counter() - start)

    @staticmethod
    def _key(method: str, target: int | None, options: dict[str, Any]) -> tuple[Any, ...]:
        return ("class", method, target, *sorted(options.items()))


def _place(grid: Grid, flat: int) -> int | tuple[int, int]:
    """Return a flat position as `attribkit.Unit` takes it: (row, column) where there is a map, else an index."""
    if grid.rows is None or grid.columns is None or flat < grid.prefix:
        return flat
    row, column = divmod(flat - grid.prefix, grid.columns)
    return row, column
