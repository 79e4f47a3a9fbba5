"""The occlusion figure: panels of one image under the grey square."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from attribkit.features.draw._base import bare, page, photograph, projection
from attribkit.report.figures import CLASS_COLOURS, OTHER_COLOUR, SCORE_COLOURS

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from attribkit.features._occlusion_study import OcclusionStudy

__all__ = ["plot"]


def plot(data: OcclusionStudy, denormalize: Any = None) -> Figure:
    """Draw an `OcclusionStudy` as the paper's (a) to (e)."""
    from matplotlib.patches import Rectangle

    others = len(data.other_ids)
    figure = page(10.5, 7.6) if others else page(15.0, 4.0)
    panels = iter((figure.subplots(2, 3) if others else figure.subplots(1, 5)).flat)
    top, left, bottom, right = data.windows[data.windows.shape[0] // 2, data.windows.shape[1] // 2]
    covered = data.inputs.clone()
    covered[:, top:bottom, left:right] = data.fill
    if denormalize is None:
        denormalize = _stretch(data.inputs)
    name = data.name(data.target).split(",")[0]
    a, b, c = next(panels), next(panels), next(panels)
    bare(a).imshow(photograph(covered, denormalize), interpolation="nearest")
    edge = Rectangle((left - 0.5, top - 0.5), right - left, bottom - top, fill=False, color="#D55E00", lw=1.2)
    a.add_patch(edge)
    a.set_title(f"(a) {name}, and the square", fontsize=9)
    _map(figure, b, data, data.activity)
    b.set_title(f"(b) activity of map {data.channel} of {data.layer}\n(clean: {data.clean_activity:.3g})", fontsize=9)
    bare(c).imshow(projection(data.projection), interpolation="nearest")
    c.set_title(f"(c) projection of map {data.channel}", fontsize=9)
    if others:
        _others(next(panels), data, denormalize)
    d, e = next(panels), next(panels)
    _map(figure, d, data, data.probability)
    d.set_title(f"(d) probability of {name}\n(clean: {data.clean_probability:.2g})", fontsize=9)
    _labels(e, data)
    return figure


def _stretch(inputs: Tensor) -> Callable[[Tensor], Tensor]:
    low, high = float(inputs.min()), float(inputs.max())
    return lambda x: (x - low) / max(high - low, 1e-12)


def _extent(data: OcclusionStudy) -> tuple[float, float, float, float]:
    """Return left, right, bottom, top in pixels of a map whose cells are centred on the squares' centres."""
    height, width = data.inputs.shape[-2:]
    rows, columns = data.windows.shape[:2]
    step_down = data.windows[1, 0, 0] - data.windows[0, 0, 0] if rows > 1 else height
    step_across = data.windows[0, 1, 1] - data.windows[0, 0, 1] if columns > 1 else width
    first = data.windows[0, 0]
    y, x = (first[0] + first[2]) / 2 - step_down / 2, (first[1] + first[3]) / 2 - step_across / 2
    return x - 0.5, x + columns * step_across - 0.5, y + rows * step_down - 0.5, y - 0.5


def _frame(axes: Any, data: OcclusionStudy) -> None:
    """Show the whole image's area, so that every panel has the same one."""
    height, width = data.inputs.shape[-2:]
    bare(axes)
    axes.set_facecolor("#eeeeee")  # no square is centred there
    axes.set_xlim(-0.5, width - 0.5)
    axes.set_ylim(height - 0.5, -0.5)
    for side in axes.spines.values():
        side.set_visible(True)
        side.set_color("#bbbbbb")


def _map(figure: Any, axes: Any, data: OcclusionStudy, values: Any) -> None:
    low, high = float(values.min()), float(values.max())
    limits = {"vmin": low, "vmax": high if high > low else low + 1e-6}
    picture = axes.imshow(values, cmap=SCORE_COLOURS, extent=_extent(data), **limits)
    _frame(axes, data)
    # an inset does not take its room from the panel: all panels stay of one size
    bar = figure.colorbar(picture, cax=axes.inset_axes((0.1, -0.07, 0.8, 0.035)), orientation="horizontal")
    bar.ax.tick_params(labelsize=7)


def _others(axes: Any, data: OcclusionStudy, denormalize: Any) -> None:
    """Show the other images in a column, their projections beside them."""
    count = len(data.other_ids)
    height, width = data.projection.shape[1:]
    small = (max(1, height // count), max(1, width // count))
    gap = np.ones((small[0], max(1, width // 40), 3))
    rows = []
    for m in range(count):
        pair = (photograph(data.others[m], denormalize), projection(data.other_projections[m]))
        rows.append(np.concatenate([_resized(pair[0], *small), gap, _resized(pair[1], *small)], axis=1))
        rows.append(np.ones((max(1, height // 40), rows[0].shape[1], 3)))
    bare(axes).imshow(np.concatenate(rows[:-1]), interpolation="nearest")
    axes.set_title(f"(c) and on the {count} other images\nthat drive map {data.channel} most", fontsize=9)


def _resized(picture: Any, height: int, width: int) -> Any:
    from PIL import Image

    image = Image.fromarray(np.round(np.clip(picture, 0, 1) * 255).astype(np.uint8))
    resized: Any = image.resize((width, height), Image.Resampling.LANCZOS)
    return np.asarray(resized) / 255


def _labels(axes: Any, data: OcclusionStudy) -> None:
    from matplotlib.colors import to_rgb
    from matplotlib.patches import Patch

    found, counts = np.unique(data.labels, return_counts=True)
    order = sorted(range(len(found)), key=lambda i: (found[i] != data.target, -counts[i], found[i]))
    picture = np.empty((*data.labels.shape, 3))
    handles = []
    named = order[:5]
    picture[:] = to_rgb(OTHER_COLOUR)
    for rank, i in enumerate(named):
        picture[data.labels == found[i]] = to_rgb(CLASS_COLOURS[rank])
        name = data.name(int(found[i])).split(",")[0]
        handles.append(Patch(color=CLASS_COLOURS[rank], label=f"{name} ({counts[i]})"))
    if len(order) > len(named):
        rest = int(sum(counts[i] for i in order[len(named) :]))
        handles.append(Patch(color=OTHER_COLOUR, label=f"{len(order) - len(named)} others ({rest})"))
    axes.imshow(picture, extent=_extent(data), interpolation="nearest")
    _frame(axes, data)
    axes.set_title("(e) most probable class\n(number of positions)", fontsize=9)
    axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.02), fontsize=7, ncols=2, frameon=False)
