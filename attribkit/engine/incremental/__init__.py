"""Incremental inference: a forward pass recorded once, then only what a change of the image changes."""

from attribkit.engine.incremental.engine import CACHE, Image, Incremental
from attribkit.engine.incremental.errors import TORCHS_OWN, Elsewhere, NotReplayable
from attribkit.engine.incremental.kept_programs import forget, keep, kept

__all__ = ["CACHE", "TORCHS_OWN", "Elsewhere", "Image", "Incremental", "NotReplayable", "forget", "keep", "kept"]
