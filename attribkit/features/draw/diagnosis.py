"""The figure of a diagnosis: the filters, their size, their frequencies, their aliasing."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from attribkit.features._diagnosis import DOMINANT, WEAK
from attribkit.features.draw._base import COLOURS, GREY, bare, page, projection

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from attribkit.features._diagnosis import Diagnosis

__all__ = ["filter_sheet", "plot"]

#: Low, mid, high: blue, orange, and a dark grey that no one takes for either.
_BANDS = ("#56B4E9", "#E69F00", "#444444")


def plot(data: Diagnosis) -> Figure:
    """Draw a `Diagnosis` in four panels."""
    figure = page(12.5, 3.7)
    filters, sizes, bands, alias = figure.subplots(1, 4, width_ratios=[1.15, 1, 1, 1])
    sheet, columns = filter_sheet(data)
    bare(filters).imshow(sheet, interpolation="nearest")
    side = sheet.shape[1] // columns
    for k in data.dead:
        filters.text(
            (k % columns + 0.5) * side,
            (k // columns + 0.5) * side,
            "×",
            color=COLOURS[1],
            ha="center",
            va="center",
            fontsize=11,
        )
    filters.set_title(f"{data.layer}: {len(data.rms)} filters" + (", × dead" if len(data.dead) else ""), fontsize=9)
    order = np.argsort(data.rms)[::-1]
    ranks = np.arange(len(order))
    median = float(np.median(data.rms))
    dominating = np.isin(order, data.dominating)
    sizes.bar(ranks, data.rms[order], width=0.85, color=np.where(dominating, COLOURS[1], COLOURS[0]).tolist())
    sizes.axhline(median, color="black", lw=1, label="median")
    limit = DOMINANT * median if data.rms.max() > 0.6 * DOMINANT * median else 0.0
    sizes.set_ylim(0, 1.35 * max(float(data.rms.max()), limit, 1e-12))  # room for the legend
    if limit:
        sizes.axhline(DOMINANT * median, color=COLOURS[1], lw=1, ls="--", label=f"{DOMINANT:g} × median: dominates")
    sizes.axhline(WEAK * median, color=GREY, lw=1, ls=":", label=f"{WEAK:g} × median: weak")
    _titled(sizes, "RMS of the weights", "filters by RMS")
    base = np.zeros(len(order))
    by_low = np.argsort(np.nan_to_num(data.shares["low"]))[::-1]
    for (band, share), colour in zip(data.shares.items(), _BANDS, strict=True):
        bands.bar(ranks, np.nan_to_num(share[by_low]), bottom=base, width=0.85, color=colour, label=band)
        base = base + np.nan_to_num(share[by_low])
    bands.set_ylim(0, 1)
    _titled(bands, "share of spectral energy by band", "filters by low share", opaque=True)
    ratio = np.sort(np.nan_to_num(data.aliasing_ratio))[::-1]
    alias.bar(ranks, ratio, width=0.85, color=COLOURS[0])
    alias.axhline(1.0, color="black", lw=1, ls=":", label="as strong above the limit as below")
    alias.set_ylim(0, max(1.2, 1.2 * float(ratio.max())))
    stride = "×".join(map(str, dict.fromkeys(data.stride)))
    _titled(alias, f"aliasing ratio at stride {stride}", "filters by ratio")
    return figure


def filter_sheet(data: Diagnosis) -> tuple[Any, int]:
    """Return all filters in one picture [H, W, 3], each around grey by its own range, and how many stand in a row."""
    count, _, height, width = data.weight.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    side = max(height, width) + 1
    sheet = np.ones((rows * side, columns * side, 3))
    for k, weight in enumerate(data.weight):
        top, left = k // columns * side, k % columns * side
        limit = float(np.abs(weight if len(weight) == 3 else weight.mean(0)).max())
        sheet[top : top + height, left : left + width] = projection(weight, limit)
    return sheet, columns


def _titled(axes: Any, title: str, below: str, *, opaque: bool = False) -> None:
    axes.set_title(title, fontsize=9)
    axes.set_xlabel(below, fontsize=8)
    axes.tick_params(labelsize=7)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(fontsize=7, frameon=opaque, framealpha=0.85, loc="upper right")
