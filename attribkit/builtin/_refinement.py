"""Looking at fewer windows: coarse to fine, more of them where the score changes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from attribkit.errors import InputError, InputTypeError

Places = list[tuple[int, int]]

#: How many windows are looked at between two glances at the clock.
_CHUNK = 32


class Limit:
    """When to stop looking: at a tolerance, or after a time.

    Parameters
    ----------
    given
        A number between 0 and 1: the error allowed, as a share of the largest drop seen. Text such as ``"20s"``: the
        seconds to spend.

    Raises
    ------
    InputError, InputTypeError
        It is neither.
    """

    def __init__(self, given: Any) -> None:
        self.tolerance, self._end, self.timed = 0.0, math.inf, isinstance(given, str)
        if self.timed:
            text = given.strip()
            try:
                seconds = float(text.removesuffix("s")) if text.endswith("s") else -1.0
            except ValueError:
                seconds = -1.0
            if not 0 < seconds < math.inf:
                raise InputError(
                    f"occlusion approximate, where it is text, must be seconds such as '20s', got {given!r}"
                )
            self._end = time.monotonic() + seconds
        elif isinstance(given, bool) or not isinstance(given, (int, float)):
            raise InputTypeError(f"occlusion approximate must be a number or seconds such as '20s', got {given!r}")
        elif not 0 < given < 1:
            raise InputError(f"occlusion approximate must be between 0 and 1, a share of the largest drop, got {given}")
        else:
            self.tolerance = float(given)

    def over(self) -> bool:
        """Tell whether the time is over."""
        return time.monotonic() >= self._end


def coarsest(window: Sequence[int], stride: Sequence[int]) -> int:
    """Return the coarsest lattice, every so many windows, whose windows still cover every pixel: a power of two."""
    return 1 << int(math.log2(max(1, min(w // s for w, s in zip(window, stride, strict=True)))))


def refine(
    find: Callable[[list[Places]], dict[str, Tensor]],
    clean: Callable[[], Tensor],
    shape: tuple[int, int],
    step: int,
    limit: Limit,
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Look at every ``step``-th window, then at those between, half the step at a time, wherever the limit asks for it.

    Between windows that were looked at scores are interpolated linearly. The error there is estimated by how far the
    windows around are from the interpolated score, or, where that is more, by how wrong the interpolation was at
    windows nearby that were looked at afterwards.

    Parameters
    ----------
    find
        Given the windows (row, column) of each image, returns what was noted by name, [N, rows, columns] each.
    clean
        Returns the clean scores [N]: other ones once a replay has been given up.
    shape
        Rows and columns of the grid of windows.
    step
        Every how many windows, along both axes, the coarsest lattice has one; a power of two.
    limit
        When to stop. The coarsest lattice is always looked at.

    Returns
    -------
    found : dict of str to Tensor [N, rows, columns]
        As ``find`` returns, filled in where no window was looked at: integers with the nearest, others linearly.
    error : Tensor [N, rows, columns]
        The estimated error of the score, 0 where it was looked at.
    seen : BoolTensor [N, rows, columns]
        Which windows were looked at.
    """
    seen = torch.zeros(len(clean()), *shape, dtype=torch.bool)
    known: dict[str, Tensor] = {}

    def look(wanted: Tensor) -> None:
        found = find([[(int(y), int(x)) for y, x in mask.nonzero()] for mask in wanted])
        for key, value in found.items():
            known[key] = torch.where(wanted.to(value.device), value, known[key]) if key in known else value
        seen.logical_or_(wanted)

    look(_lattice(shape, step).expand_as(seen))
    score = known["score"].cpu().double()
    filled = _fill(score, seen, nearest=False)
    error = _spread(filled, step) * ~seen
    while step > 1 and not limit.over():
        finer = _lattice(shape, step // 2)
        largest = ((clean().cpu().double()[:, None, None] - score).abs() * seen).amax((1, 2), keepdim=True)
        wanted = finer & ~seen & (error > limit.tolerance * largest)
        if not bool(wanted.any()):
            step //= 2
            continue
        before = seen.clone()
        for part in _worst_first(wanted, error, _CHUNK if limit.timed else wanted.numel()):
            if limit.over():
                break
            look(part)
        score = known["score"].cpu().double()
        surplus = _around((score - filled).abs() * (seen & ~before), step)
        filled = _fill(score, seen, nearest=False)
        surrounded = _corners(seen, step // 2).all(0)
        error = torch.maximum(torch.where(surrounded, _spread(filled, step // 2), error), surplus) * ~seen
    found = {
        key: _fill(value.cpu(), seen, nearest=not value.is_floating_point()).to(value) for key, value in known.items()
    }
    scores = clean()
    return found, error.to(scores), seen.to(scores.device)


def _lines(length: int, step: int) -> list[int]:
    """Return every ``step``-th line and the last."""
    return sorted({*range(0, length, step), length - 1})


def _lattice(shape: Sequence[int], step: int) -> Tensor:
    rows, columns = (torch.zeros(length, dtype=torch.bool) for length in shape)
    rows[_lines(shape[0], step)] = True
    columns[_lines(shape[1], step)] = True
    return rows[:, None] & columns


def _weights(length: int, step: int) -> Tensor:
    """Return by which weights [length, lines] every line is interpolated between the lattice's lines."""
    lines = _lines(length, step)
    weights = torch.zeros(length, len(lines), dtype=torch.float64)
    for low, (a, b) in enumerate(zip(lines, [*lines[1:], lines[-1] + 1], strict=True)):
        for line in range(a, min(b, length)):
            weights[line, low] = (b - line) / (b - a)
            if line > a:
                weights[line, low + 1] = (line - a) / (b - a)
    return weights


def _fill(values: Tensor, seen: Tensor, *, nearest: bool) -> Tensor:
    """Return values [N, rows, columns] with those not seen interpolated: on the coarsest lattice first, then finer."""
    shape, step = seen.shape[1:], 1
    while not bool(seen[:, _lattice(shape, step)].all()):
        step *= 2
    values = filled = values.double()
    while step >= 1:
        rows, columns = (_weights(length, step) for length in shape)
        if nearest:
            rows, columns = (torch.eye(w.shape[1], dtype=w.dtype)[w.argmax(1)] for w in (rows, columns))
        points = filled[:, _lines(shape[0], step)][:, :, _lines(shape[1], step)]
        filled = torch.where(seen, values, rows @ points @ columns.T)
        step //= 2
    return filled


def _corners(values: Tensor, step: int) -> Tensor:
    """Return for every place the values at the four points of the lattice around it: [4, N, rows, columns]."""
    sides = []
    for length in values.shape[1:]:
        lines = torch.tensor(_lines(length, step))
        low = torch.searchsorted(lines, torch.arange(length), right=True) - 1
        high = torch.searchsorted(lines, torch.arange(length))
        sides.append((lines[low], lines[high]))
    return torch.stack([values[:, rows][:, :, columns] for rows in sides[0] for columns in sides[1]])


def _spread(filled: Tensor, step: int) -> Tensor:
    """Return for every place how far the points of the lattice around it are from it at most."""
    return (_corners(filled, step) - filled).abs().amax(0)


def _around(values: Tensor, reach: int) -> Tensor:
    """Return for every place the largest value within ``reach`` of it."""
    return F.max_pool2d(values[:, None], 2 * reach + 1, 1, reach)[:, 0]


def _worst_first(wanted: Tensor, error: Tensor, size: int) -> Iterator[Tensor]:
    """Cut the wanted windows into masks of ``size`` windows, those with the largest errors first."""
    order = torch.where(wanted, error, -torch.ones_like(error)).flatten().argsort(descending=True, stable=True)
    for start in range(0, int(wanted.sum()), size):
        part = torch.zeros_like(wanted).flatten()
        part[order[start : min(start + size, int(wanted.sum()))]] = True
        yield part.view_as(wanted)
