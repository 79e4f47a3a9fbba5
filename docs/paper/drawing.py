"""Fig. 1 drawn from a real computation: one layer of a convnet, and the deconvnet's layer on it."""

from __future__ import annotations

from typing import Any

import torch
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from torch import nn

import attribkit as ak
from attribkit.report.levels import palette

SWITCH = "#D55E00"


def tiny() -> tuple[nn.Module, torch.Tensor]:
    """Return a network of one layer and an image [1, 1, 8, 8] with a bright corner on it."""
    model = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[[[1.0, 1.0, 0.0], [1.0, -1.0, -1.0], [0.0, -1.0, -1.0]]]]))
        model[0].bias.zero_()
    image = torch.zeros(1, 1, 8, 8)
    image[0, 0, 1:6, 1:3] = 1.0
    image[0, 0, 4:6, 1:7] = 0.8
    return model.eval(), image


def layer() -> Figure:
    """Draw the way up (top) and the way back of the strongest activation (bottom), with the pool's switches between."""
    model, image = tiny()
    with torch.no_grad():
        maps = model[0](image)
        rectified = model[1](maps)
        pooled, switches = torch.nn.functional.max_pool2d(rectified, 2, return_indices=True)
    best = int(pooled.argmax())
    start = torch.zeros_like(pooled)
    start.view(-1)[best] = pooled.max()
    unpooled = torch.zeros_like(maps).flatten().scatter_add(0, switches.flatten(), start.flatten()).view_as(maps)
    back = ak.attribute(model, image, "deconvnet", ak.Unit("2", 0, divmod(best, 4))).values
    # what is drawn step by step is what attribkit computes
    expected = torch.nn.functional.conv_transpose2d(unpooled.clamp(min=0), model[0].weight, padding=1)
    if not torch.allclose(back, expected, atol=1e-6):
        raise RuntimeError("the steps drawn are not the deconvnet's")
    figure = Figure(figsize=(10, 5.6), layout="constrained")
    figure.get_layout_engine().set(hspace=0.14)
    grid = figure.subplots(2, 4)
    up = [
        ("image", image),
        ("feature map\n(filter)", maps),
        ("rectified map\n(relu)", rectified),
        ("pooled map\n(max pool)", pooled),
    ]
    down = [("reconstruction\n(transposed filter)", back), ("rectified\n(relu)", unpooled.clamp(min=0))]
    down += [("unpooled\n(through the switches)", unpooled), ("one activation,\nall others zero", start)]
    signed = ListedColormap(palette("signed") / 255)
    limit = float(torch.cat([v.flatten() for _, v in (*up, *down)]).abs().max())
    for row, cells in enumerate((up, down)):
        for axes, (title, values) in zip(grid[row], cells, strict=True):
            axes.imshow(values[0, 0].numpy(), cmap=signed, vmin=-limit, vmax=limit)
            if row == 0:
                axes.set_title(title, fontsize=10)
            else:
                axes.set_xlabel(title, fontsize=10)
            axes.set_xticks([])
            axes.set_yticks([])
    for axes in (grid[0, 2], grid[1, 2]):
        _switches(axes, switches, 8)
    _arrows(figure, grid)
    figure.supxlabel(
        "Upper row: the convnet, from left to right. Lower row: the deconvnet, from right to left.\n"
        "Red is positive, blue negative; ○: where each window of the pool had its maximum (the switches).",
        fontsize=9,
    )
    return figure


def _switches(axes: Any, switches: torch.Tensor, side: int) -> None:
    rows, columns = divmod(switches.flatten().numpy(), side)
    axes.scatter(columns, rows, s=38, facecolors="none", edgecolors=SWITCH, linewidths=1.2)
    for edge in range(2, side, 2):
        axes.axhline(edge - 0.5, color="#bbbbbb", lw=0.8)
        axes.axvline(edge - 0.5, color="#bbbbbb", lw=0.8)


def _arrows(figure: Figure, grid: Any) -> None:
    from matplotlib.patches import ConnectionPatch

    def arrow(start: Any, end: Any, a: tuple[float, float], b: tuple[float, float], **look: Any) -> None:
        style = {"arrowstyle": "-|>", "mutation_scale": 16, "lw": 1.5, "color": "#444444", **look}
        patch = ConnectionPatch(a, b, "axes fraction", "axes fraction", axesA=start, axesB=end, **style)
        patch.set_in_layout(False)
        figure.add_artist(patch)

    for i in range(3):
        arrow(grid[0, i], grid[0, i + 1], (1.04, 0.5), (-0.04, 0.5))
        arrow(grid[1, i + 1], grid[1, i], (-0.04, 0.5), (1.04, 0.5))
    arrow(grid[0, 3], grid[1, 3], (0.92, -0.04), (0.92, 1.04))
    arrow(grid[0, 2], grid[1, 2], (0.92, -0.04), (0.92, 1.04), color=SWITCH, ls="--")
