"""Whether a notebook is running, and how to show something there; IPython is never imported for the sake of asking."""

from __future__ import annotations

import importlib
import sys
from typing import Any


def running() -> bool:
    """Tell whether this code runs in a notebook: in a shell of IPython's that has a kernel (a terminal's has none)."""
    module = sys.modules.get("IPython")
    get_ipython = getattr(module, "get_ipython", None)
    shell = get_ipython() if get_ipython is not None else None
    return getattr(shell, "kernel", None) is not None


class Output:
    """A place in the output of the running cell whose contents can be replaced."""

    def __init__(self) -> None:
        self._handle: Any = None

    def show(self, html: str, text: str) -> None:
        """Show HTML, with a text for those who show none, in place of what was shown before."""
        display: Any = importlib.import_module("IPython.display").display
        contents = {"text/html": html, "text/plain": text}
        if self._handle is None:
            self._handle = display(contents, raw=True, display_id=True)
        else:
            self._handle.update(contents, raw=True)
