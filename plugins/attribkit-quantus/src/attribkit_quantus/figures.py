"""The page's pictures, as PNG."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.image import imsave

from attribkit.report.figures import signed_map
from attribkit_quantus.results import CONTROL, Evaluation

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31")
"""Okabe and Ito's palette, for readers who do not see all colours."""
STYLES = ("-", "--", "-.", ":")
GREY = "#767676"


def layers(found: Evaluation) -> str:
    """Return the picture of how alike the maps stay while layers become random, as a data URI."""
    if found.cascade is None:
        return ""
    depths = found.cascade.depths
    names = ["as trained", *(depth.layer for depth in depths)]
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for panel, reading, title in zip(panels, (0, 1), ("Signed", "Signs dropped"), strict=True):
        panel.axvspan(0, found.cascade.upper + 1, color="#000000", alpha=0.06, lw=0)
        panel.axhline(0, color=GREY, lw=0.8)
        for index, method in enumerate(found.randomised):
            intervals = found.along(method)[reading]
            mean = [1.0, *(i.mean for i in intervals)]
            low, high = [1.0, *(i.low for i in intervals)], [1.0, *(i.high for i in intervals)]
            panel.plot(range(len(names)), mean, **style(index), label=method, marker="o", ms=3.5)
            panel.fill_between(range(len(names)), low, high, color=style(index)["color"], alpha=0.2, lw=0)
        panel.set_xticks(range(len(names)), names, rotation=40, ha="right", fontsize=8)
        panel.set_title(title, fontsize=10)
        panel.set_ylim(-0.35, 1.05)
    panels[0].set_ylabel("rank correlation with the map before")
    panels[1].legend(fontsize=8, frameon=False)
    return png(figure)


def curves(found: Evaluation) -> str:
    """Return the picture of the mean curves of deletion, insertion and pixel flipping, as a data URI."""
    titles = {"deletion": "Deletion", "insertion": "Insertion", "pixel_flipping": "Pixel flipping"}
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    panels = figure.subplots(1, len(titles))
    for panel, (name, title) in zip(panels, titles.items(), strict=True):
        for index, row in enumerate(found.rows):
            curve = found.curves.get((row, name))
            if curve is not None:
                look = style(index) if row != CONTROL else {"color": GREY, "linestyle": ":"}
                panel.plot(np.linspace(0, 1, len(curve)), curve, **look, label=row)
        panel.set_title(title, fontsize=10)
        panel.set_xlabel("share of the way", fontsize=8)
        panel.tick_params(labelsize=8)
    panels[0].set_ylabel("probability of the class")
    panels[2].set_ylabel("score of the class")
    panels[1].legend(fontsize=8, frameon=False)
    return png(figure)


def style(index: int) -> dict[str, Any]:
    """Return the look of a method's line: colour and dashes, so that neither alone has to be told apart."""
    return {"color": COLOURS[index % len(COLOURS)], "linestyle": STYLES[index % len(STYLES)]}


def signed(heat: npt.NDArray[Any]) -> str:
    """Return a signed map, red for and blue against, as a data URI."""
    return uri(signed_map(heat[None]).data)


def picture(pixels: npt.NDArray[Any]) -> str:
    """Return an RGB array as a picture, a data URI."""
    buffer = io.BytesIO()
    imsave(buffer, pixels, format="png")
    return uri(buffer.getvalue())


def png(figure: Figure) -> str:
    """Return a figure as a data URI; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, metadata={"Software": None})
    return uri(buffer.getvalue())


def uri(data: bytes) -> str:
    """Return PNG bytes as a data URI."""
    return f"data:image/png;base64,{base64.b64encode(data).decode('ascii')}"
