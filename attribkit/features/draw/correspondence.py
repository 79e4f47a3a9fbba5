"""The figure of a correspondence: the masked images, and the distances beside those of random masks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from attribkit.features.draw._base import COLOURS, bare, page, photograph

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from attribkit.features._correspondence import Correspondence

__all__ = ["plot"]

_SHOWN = 5


def plot(data: Correspondence, denormalize: Any = None) -> Figure:
    """Draw a `Correspondence`: at most five images with their parts, and for each layer the mean distances."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Rectangle

    shown = min(len(data.ids), _SHOWN)
    figure = page(10.5, 4.8)
    sheets: Any = figure.subfigures(2, 1, height_ratios=[1.75, 2.9])
    pictures, charts = sheets
    for n, axes in enumerate(np.atleast_1d(pictures.subplots(1, shown))):
        bare(axes).imshow(photograph(data.inputs[n], denormalize), interpolation="nearest")
        for k, part in enumerate(data.parts):
            top, left, bottom, right = data.boxes[part][n]
            size = (right - left, bottom - top)
            style: dict[str, Any] = {"fill": False, "color": COLOURS[k % len(COLOURS)], "lw": 1.8}
            axes.add_patch(Rectangle((left - 0.5, top - 0.5), *size, label=part if n == 0 else None, **style))
    pictures.legend(loc="outside lower center", ncols=len(data.parts), fontsize=8, frameon=False)
    rows = data.summary()
    for layer, axes in zip(data.layers, np.atleast_1d(charts.subplots(1, len(data.layers), sharey=True)), strict=True):
        for k, part in enumerate(data.parts):
            for offset, masks in ((-0.14, "part"), (0.14, "random")):
                row = next((r for r in rows if (r["layer"], r["part"], r["masks"]) == (layer, part, masks)), None)
                if row is None:
                    continue
                own = masks == "part"
                axes.errorbar(
                    k + offset,
                    row["mean"],
                    yerr=row["standard_error"] or 0.0,
                    fmt="o" if own else "s",
                    color=COLOURS[k % len(COLOURS)] if own else "#666666",
                    markerfacecolor=None if own else "white",
                    capsize=4,
                )
        axes.set_xticks(range(len(data.parts)), data.parts, fontsize=8)
        axes.set_xlim(-0.6, len(data.parts) - 0.4)
        axes.margins(y=0.12)
        axes.tick_params(axis="y", labelsize=8)
        axes.set_title(f"{layer}: share of features whose change\ndiffers in sign, mean ± standard error", fontsize=9)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    handles = [Line2D([], [], color=COLOURS[0], marker="o", ls="", label="the part")]
    handles += [Line2D([], [], color="#666666", marker="s", markerfacecolor="white", ls="", label="random, same size")]
    charts.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    return figure
