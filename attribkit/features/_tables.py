"""Numbers to files: a table as CSV, a figure as PNG, each written whole or not at all."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from attribkit.attribution import write_atomically

__all__ = ["figure_png", "write_csv"]


def write_csv(path: str | os.PathLike[str], header: Sequence[str], rows: Iterable[Sequence[Any]]) -> Path:
    """Write a table as UTF-8 CSV; floats are written so that reading them gives the same number back.

    Parameters
    ----------
    path
        Where to; an existing file is replaced.
    header
        The columns' names.
    rows
        The cells; None is an empty one.

    Raises
    ------
    OSError
        The folder does not exist or cannot be written.
    """
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    for row in rows:
        writer.writerow(["" if cell is None else _cell(cell) for cell in row])
    path = Path(path)
    write_atomically(path, buffer.getvalue().encode("utf-8"))
    return path


def figure_png(figure: Any, path: str | os.PathLike[str], dpi: int = 110) -> Path:
    """Write a matplotlib figure as PNG, the same bytes for the same figure.

    Parameters
    ----------
    figure
        A ``matplotlib.figure.Figure``.
    path
        Where to; an existing file is replaced.
    dpi
        Pixels an inch.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    path = Path(path)
    write_atomically(path, buffer.getvalue())
    return path


def _cell(cell: Any) -> Any:
    value = cell.item() if hasattr(cell, "item") else cell
    return repr(value) if isinstance(value, float) else value
