"""Tables on stdout."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

_PIPED_WIDTH = 200


def print_table(table: Table) -> None:
    """Print a table as wide as the terminal; wide enough not to break lines where there is none (a pipe, a file)."""
    console = Console()
    if not console.is_terminal:
        console.width = _PIPED_WIDTH
    console.print(table, highlight=False)
