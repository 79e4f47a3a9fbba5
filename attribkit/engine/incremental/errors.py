"""Why a forward pass cannot be replayed."""

from __future__ import annotations


class NotReplayable(Exception):
    """The forward pass does something that a replay on other rows could get wrong; the message says what.

    Never an error of the caller's: whoever catches it runs the model itself instead.
    """
