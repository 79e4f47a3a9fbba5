"""Explaining whole data sets: images listed, loaded, explained batch by batch and kept in a store, come what may."""

from attribkit.runs.listing import list_images
from attribkit.runs.loop import Outcome, run
from attribkit.runs.plan import Plan

__all__ = ["Outcome", "Plan", "list_images", "run"]
