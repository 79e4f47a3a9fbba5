"""What is wrong with a store."""

from __future__ import annotations

from attribkit.errors import InputError

__all__ = ["StoreError"]


class StoreError(InputError):
    """A store is not there, is damaged, is in use, or holds another run."""
