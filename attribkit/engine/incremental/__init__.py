"""Incremental inference: a forward pass recorded once, then only what a change of the image changes."""

from attribkit.engine.incremental.engine import CACHE, Image, Incremental
from attribkit.engine.incremental.errors import Elsewhere, NotReplayable, is_torchs_own
from attribkit.engine.incremental.kept_programs import forget, keep, kept

__all__ = ["CACHE", "Elsewhere", "Image", "Incremental", "NotReplayable", "forget", "is_torchs_own", "keep", "kept"]
