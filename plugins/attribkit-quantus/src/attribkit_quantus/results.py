"""What an evaluation found: numbers an image, their means, tables."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from attribkit_quantus.randomisation import Cascade
from attribkit_quantus.settings import MEASURES, Measure, Settings
from attribkit_quantus.statistics import Interval, bootstrap

Array = npt.NDArray[np.float64]

CONTROL = "(random map)"
"""The row of maps that are noise: what a measure gives for a map that knows nothing."""


@dataclass
class Values:
    """A measure's numbers.

    Attributes
    ----------
    ids
        The image each number belongs to.
    numbers
        One an image; NaN where it is not defined.
    groups
        Which images were measured together; None: each on its own.
    """

    ids: Sequence[str]
    numbers: Array
    groups: npt.NDArray[np.int64] | None = None


@dataclass
class Randomised:
    """How alike a method's maps stay while the network's layers are reset.

    Attributes
    ----------
    signed, absolute
        Rank correlation with the map of the network as it was [depths, n], of the values and of their sizes.
    """

    signed: Array
    absolute: Array


@dataclass
class Evaluation:
    """Everything an evaluation found.

    Attributes
    ----------
    model, data
        What was evaluated, and on what.
    settings
        How.
    methods
        The methods' names as rows are called, in the caller's order; those that failed are left out.
    values
        By method and measure. The control's row is `CONTROL`.
    curves
        By method and by ``deletion``, ``insertion``, ``pixel_flipping``: the mean curve.
    cascade
        Which layers were reset, or None where randomisation was not asked for.
    randomised
        By method.
    same_class
        At each depth, the share of the images to which the randomised network gives the class it gave before.
    facts
        What a reader needs to know of the run, by name.
    failures
        By method, why there is no row.
    notes
        What could not be measured as asked, and why.
    skipped
        Images that could not be read, and why.
    samples
        A grid and its maps for the page, by method: arrays [H, W]; the grid itself is ``""`` as [H, W, 3].
    """

    model: str
    data: str
    settings: Settings
    methods: list[str] = field(default_factory=list)
    values: dict[tuple[str, str], Values] = field(default_factory=dict)
    curves: dict[tuple[str, str], Array] = field(default_factory=dict)
    cascade: Cascade | None = None
    randomised: dict[str, Randomised] = field(default_factory=dict)
    same_class: list[float] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    samples: dict[str, npt.NDArray[Any]] = field(default_factory=dict)

    @property
    def measures(self) -> tuple[Measure, ...]:
        """The measures there are numbers for, in the order of the table."""
        there = {measure for _, measure in self.values}
        return tuple(measure for measure in MEASURES if measure.name in there)

    @property
    def rows(self) -> list[str]:
        """The methods, and the control where it has any number."""
        return [*self.methods, *([CONTROL] if any(method == CONTROL for method, _ in self.values) else [])]

    def interval(self, method: str, measure: str) -> Interval | None:
        """Return a measure's mean over the images with its interval; None where it was not taken."""
        found = self.values.get((method, measure))
        return None if found is None else self._interval(found.numbers, found.groups)

    def along(self, method: str) -> tuple[list[Interval], list[Interval]]:
        """Return the rank correlations at each depth, signed and absolute."""
        found = self.randomised[method]
        return [self._interval(row) for row in found.signed], [self._interval(row) for row in found.absolute]

    def table_csv(self) -> str:
        """Return one row a method and measure: mean, lo, hi, n."""
        rows = []
        for method in self.rows:
            for measure in self.measures:
                found = self.interval(method, measure.name)
                if found is not None:
                    rows.append((method, measure.name, found.mean, found.low, found.high, found.n, measure.better))
        return _csv(("method", "metric", "mean", "lo", "hi", "n", "better"), rows)

    def images_csv(self) -> str:
        """Return one row an image, method and measure."""
        rows = (
            (method, measure.name, name, number)
            for method in self.rows
            for measure in self.measures
            if (found := self.values.get((method, measure.name))) is not None
            for name, number in zip(found.ids, found.numbers, strict=True)
        )
        return _csv(("method", "metric", "image", "value"), rows)

    def randomisation_csv(self) -> str:
        """Return one row a method, depth and reading of the map."""
        rows = []
        for method in self.randomised:
            for reading, intervals in zip(("signed", "absolute"), self.along(method), strict=True):
                for depth, same, found in zip(self._depths(), self.same_class, intervals, strict=True):
                    numbers = (found.mean, found.low, found.high, found.n)
                    rows.append((method, reading, depth.layer, depth.count, *numbers, same))
        return _csv(("method", "reading", "down_to", "layers", "mean", "lo", "hi", "n", "same_class"), rows)

    def _depths(self) -> Sequence[Any]:
        return () if self.cascade is None else self.cascade.depths

    def _interval(self, numbers: Array, groups: npt.NDArray[np.int64] | None = None) -> Interval:
        settings = self.settings
        return bootstrap(numbers, groups, seed=settings.seed, resamples=settings.resamples, level=settings.level)


def _csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([_cell(cell) for cell in row] for row in rows)
    return buffer.getvalue()


def _cell(cell: Any) -> Any:
    """Return a number as text that reads back the same, and an unknown one as nothing."""
    value = cell.item() if isinstance(cell, np.generic) else cell
    return ("" if np.isnan(value) else repr(value)) if isinstance(value, float) else value
