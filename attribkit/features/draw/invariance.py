"""The figure of an invariance: a row a transform; the pictures, the layers' distances, the probability."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from attribkit.features._invariance import _ARGUMENT, TRANSFORMS, Invariance
from attribkit.features._transforms import transform
from attribkit.features.draw._base import COLOURS, STYLES, bare, page, photograph

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot"]

_SHOWN = 7


def plot(data: Invariance, denormalize: Any = None) -> Figure:
    """Draw an `Invariance`: curves of at most seven images, and the first image transformed."""
    shown = min(len(data.ids), _SHOWN)
    curves, layers = list(data.curves.items()), data.layers
    figure = page(3.0 * (len(layers) + 1) + 2.6, 2.4 * len(curves) + 0.5)
    grid = figure.subplots(len(curves), len(layers) + 2, squeeze=False, width_ratios=[0.8] + [1.0] * (len(layers) + 1))
    for r, (name, curve) in enumerate(curves):
        unit, neutral = TRANSFORMS[name]
        _pictures(grid[r, 0], data, name, curve.amounts, denormalize)
        for column in range(1, len(layers) + 2):
            axes = grid[r, column]
            values = curve.probability if column > len(layers) else curve.distances[column - 1]
            for n in range(shown):
                style = {"color": COLOURS[n], "linestyle": STYLES[n], "linewidth": 1.4}
                axes.plot(curve.amounts, values[n], label=data.names[n] if r == 0 else None, **style)
            axes.axvline(neutral, color="#cccccc", linewidth=0.8, zorder=0)
            axes.set_xlabel(f"{name} ({unit})", fontsize=8)
            axes.tick_params(labelsize=7)
            axes.set_ylim(bottom=0, top=1.02 if column > len(layers) else None)
            for side in ("top", "right"):
                axes.spines[side].set_visible(False)
            if r == 0:
                title = "probability of the class" if column > len(layers) else f"distance at {layers[column - 1]}"
                axes.set_title(title, fontsize=9)
    handles, labels = grid[0, 1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(shown, 5), fontsize=8, frameon=False)
    return figure


def _pictures(axes: Any, data: Invariance, name: str, amounts: Any, denormalize: Any) -> None:
    """Show the first image at the smallest, the neutral and the largest amount."""
    neutral = TRANSFORMS[name][1]
    chosen = list(dict.fromkeys((float(amounts.min()), neutral, float(amounts.max()))))
    if name == "rotation" and chosen[-1] % 360 == 0 and len(amounts) > 3:
        chosen = [neutral, *(float(np.sort(amounts)[len(amounts) * i // 8]) for i in (1, 3))]
    low, high = float(data.inputs[0].min()), float(data.inputs[0].max())
    strip = []
    for amount in chosen:
        moved = transform(data.inputs[:1], fill=data.fill, **{_ARGUMENT[name]: amount})[0]
        if denormalize is None:  # one scale for all, or the fill would change the picture's colours
            moved = ((moved - low) / max(high - low, 1e-12)).clamp(0, 1)
        strip.append(photograph(moved, denormalize or (lambda x: x)))
    side = strip[0].shape[0]
    gap = np.ones((max(2, side // 20), strip[0].shape[1], 3))
    column = np.concatenate([part for picture in strip for part in (picture, gap)][:-1])
    bare(axes).imshow(column, interpolation="nearest")
    for i, amount in enumerate(chosen):
        axes.text(
            -0.06 * strip[0].shape[1],
            (i + 0.5) * side + i * len(gap),
            f"{amount:g}",
            ha="right",
            va="center",
            fontsize=8,
        )
