"""The grid pointing game: images of different classes in one grid, and where the map of one class lies.

Zhang et al. 2018 ask whether a map points at the object; Böhle et al. 2021 put several images into a grid, so that the
place of each class is known without annotation, and take the share of the positive attribution that lies there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

Array = npt.NDArray[np.float64]


@dataclass
class Grids:
    """Grids of images.

    Attributes
    ----------
    images
        The grids [G, C, H, W], of the size of a single input.
    classes
        The class in each cell [G, side²], row by row.
    members
        Which candidate stands in each cell [G, side²].
    """

    images: Tensor
    classes: Tensor
    members: npt.NDArray[np.int64]

    @property
    def side(self) -> int:
        """Cells along a side."""
        return math.isqrt(self.classes.shape[1])


def arrange(classes: Sequence[int], cells: int, most: int, seed: int) -> npt.NDArray[np.int64]:
    """Return which candidates share a grid [G, cells]: no class twice in one, no candidate twice.

    Parameters
    ----------
    classes
        The class of each candidate; candidates are used in this order.
    cells
        Cells of a grid.
    most
        How many grids at most.
    seed
        Of the places within the grids.
    """
    waiting: dict[int, list[int]] = {}
    for index, label in enumerate(classes):
        waiting.setdefault(int(label), []).append(index)
    rng = np.random.default_rng(seed)
    found: list[npt.NDArray[np.int64]] = []
    while len(found) < most:
        # the classes with the most candidates first: none is left over that could have had a place
        fullest = sorted(waiting, key=lambda label: (-len(waiting[label]), label))[:cells]
        if len(fullest) < cells or not waiting[fullest[-1]]:
            break
        found.append(rng.permutation([waiting[label].pop(0) for label in fullest]))
    return np.array(found, dtype=np.int64).reshape(-1, cells)


def edges(length: int, side: int) -> list[int]:
    """Return where the cells of a grid begin and end along an axis of so many pixels."""
    return [round(i * length / side) for i in range(side + 1)]


def build(inputs: Tensor, members: npt.NDArray[np.int64], side: int) -> Tensor:
    """Return the grids [G, C, H, W] of inputs [N, C, H, W]: each cell is an input, scaled down (antialiased)."""
    rows, columns = (edges(length, side) for length in inputs.shape[2:])
    found = inputs.new_zeros(len(members), *inputs.shape[1:])
    for cell in range(side * side):
        top, bottom = rows[cell // side : cell // side + 2]
        left, right = columns[cell % side : cell % side + 2]
        chosen = inputs[torch.as_tensor(members[:, cell], device=inputs.device)]
        small = F.interpolate(chosen, size=(bottom - top, right - left), mode="bilinear", antialias=True)
        found[:, :, top:bottom, left:right] = small
    return found


def shares(heat: Tensor, cell: int, side: int) -> Tensor:
    """Return the share of each map's positive values [N, H, W] that lies in a cell; 0 where nothing is positive."""
    positive = heat.clamp(min=0).double()
    rows, columns = (edges(length, side) for length in heat.shape[1:])
    row, column = divmod(cell, side)
    inside = positive[:, rows[row] : rows[row + 1], columns[column] : columns[column + 1]].sum((1, 2))
    total = positive.sum((1, 2))
    return torch.where(total > 0, inside / total, 0.0)


def localise(explain: Callable[[Tensor, Tensor], Tensor], grids: Grids) -> Array:
    """Return the share in the right cell for every cell of every grid [G, side²].

    Parameters
    ----------
    explain
        Returns the maps of inputs [N, C, H, W] for classes [N].
    grids
        The grids.
    """
    cells = range(grids.classes.shape[1])
    found = [shares(explain(grids.images, grids.classes[:, cell]).sum(1), cell, grids.side) for cell in cells]
    return np.asarray(torch.stack(found, 1).cpu().numpy(), dtype=np.float64)
