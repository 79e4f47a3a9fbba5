"""What the figures share: a page with panels, pictures of inputs and of projections."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from attribkit.report import figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["COLOURS", "GREY", "bare", "page", "photograph", "projection", "slug"]

#: Okabe and Ito's, the darker ones first: thin lines must stand out from white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
#: Line styles in step with the colours, so that no curve is told by colour alone.
STYLES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)))
GREY = "#666666"

Denormalize = Callable[[Tensor], Tensor] | None


def page(width: float, height: float) -> Figure:
    """Return an empty figure of so many inches, with constrained layout."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def bare(axes: Any) -> Any:
    """Take ticks and frame off."""
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_visible(False)
    return axes


def photograph(inputs: Tensor, denormalize: Denormalize = None) -> npt.NDArray[np.float64]:
    """Return an input [C, H, W] as an RGB picture [H, W, 3] in 0…1; without ``denormalize`` its range is stretched."""
    values = inputs.detach().float().cpu()
    if denormalize is not None:
        values = denormalize(values).clamp(0, 1)
    else:
        low, high = float(values.min()), float(values.max())
        values = (values - low) / (high - low) if high > low else torch.full_like(values, 0.5)
    if len(values) != 3:
        values = values.mean(0, keepdim=True).expand(3, -1, -1)
    return values.permute(1, 2, 0).double().numpy()


def projection(values: npt.NDArray[Any], limit: float | None = None) -> npt.NDArray[np.float64]:
    """Return a projection [C, H, W] as an RGB picture [H, W, 3] in 0…1: mid-grey is zero."""
    return np.asarray(figures.around_grey(values, limit).convert("RGB")) / 255


def slug(layer: str) -> str:
    """Return a layer's name as part of a file's name."""
    return "".join(char if char.isalnum() or char in "._-" else "_" for char in layer)
