"""The figure of an evolution: a strip a map, epochs from left to right."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from attribkit.features.draw._base import COLOURS, GREY, bare, page, projection
from attribkit.report.figures import robust_limit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from attribkit.features._evolution import Evolution

__all__ = ["plot"]


def plot(data: Evolution) -> Figure:
    """Draw an `Evolution`: each row a map, each column an epoch; an orange frame where another image took over."""
    rows, columns = len(data.channels), len(data.epochs)
    figure = page(0.9 * columns + 1.0, 0.92 * rows + 0.75)
    grid = figure.subplots(rows, columns, squeeze=False)
    jumps = data.jumps
    side = int(max((data.boxes[..., 2] - data.boxes[..., 0]).max(), (data.boxes[..., 3] - data.boxes[..., 1]).max()))
    for k, channel in enumerate(data.channels):
        for e, epoch in enumerate(data.epochs):
            axes = bare(grid[k, e])
            top, left, bottom, right = data.boxes[e, k]
            patch = data.projections[e, k][:, top:bottom, left:right]
            if robust_limit(patch):
                axes.imshow(_squared(projection(patch), side), interpolation="nearest", vmin=0, vmax=1)
            else:
                axes.text(0.5, 0.5, "no activity", ha="center", va="center", fontsize=7, color=GREY)
                axes.set_xlim(0, 1)
                axes.set_ylim(0, 1)
                axes.set_aspect("equal")
            for edge in axes.spines.values():
                edge.set_visible(True)
                edge.set_color(COLOURS[4] if jumps[e, k] else "#bbbbbb")
                edge.set_linewidth(2.5 if jumps[e, k] else 0.5)
            if k == 0:
                axes.set_title(f"{epoch}", fontsize=9)
            if e == 0:
                axes.set_ylabel(f"map {channel}", fontsize=8)
    figure.suptitle(
        f"{data.layer}, {data.method}: each map's strongest activation,\nby epoch; orange: another image took over",
        fontsize=9,
    )
    return figure


def _squared(picture: Any, side: int) -> Any:
    """Put a picture [h, w, 3] into the middle of a grey square: every panel has the same scale."""
    height, width = picture.shape[:2]
    square = np.full((side, side, 3), 0.5)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = picture
    return square
