"""Incremental inference: a forward pass recorded once, then only what a change of the image changes."""

from attribkit.engine.incremental.engine import CACHE, Image, Incremental
from attribkit.engine.incremental.errors import TORCHS_OWN, Differs, Elsewhere, NotReplayable

__all__ = ["CACHE", "TORCHS_OWN", "Differs", "Elsewhere", "Image", "Incremental", "NotReplayable"]
