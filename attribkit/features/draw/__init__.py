"""Figures of the analyses: each made from the data that an analysis returned, by nothing else.

Colours are those of `attribkit.report.figures`, chosen for colour-blind readers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attribkit.errors import InputTypeError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot"]


def plot(data: Any) -> Figure:
    """Draw what an analysis returned.

    Parameters
    ----------
    data
        An `Evolution`, `Invariance`, `OcclusionStudy`, `Correspondence` or `Diagnosis`.

    Returns
    -------
    matplotlib.figure.Figure
        Not registered with pyplot: nothing has to be closed.

    Raises
    ------
    InputTypeError
        It is something else.
    """
    own = getattr(data, "plot", None)
    if not callable(own):
        raise InputTypeError(f"plot takes what an analysis of attribkit.features returned, got {type(data).__name__}")
    figure: Figure = own()
    return figure
