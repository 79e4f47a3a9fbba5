"""Explaining whole data sets: images listed, loaded, explained batch by batch and kept in a store, come what may.

The names below are loaded on first use: listing images needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from attribkit.runs.listing import list_images
    from attribkit.runs.loop import Outcome, run
    from attribkit.runs.plan import Plan

_SOURCES = {"Outcome": "loop", "Plan": "plan", "list_images": "listing", "run": "loop"}

__all__ = ["Outcome", "Plan", "list_images", "run"]


def __getattr__(name: str) -> object:
    if name not in _SOURCES:
        raise AttributeError(f"module 'attribkit.runs' has no attribute {name!r}")
    return getattr(import_module(f"attribkit.runs.{_SOURCES[name]}"), name)
