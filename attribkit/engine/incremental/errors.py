"""Why a forward pass cannot be replayed."""

from __future__ import annotations

#: What torch raises itself, as opposed to what models, callers and their subclasses raise through it.
TORCHS_OWN = frozenset({RuntimeError, NotImplementedError, IndexError, ValueError, TypeError, KeyError, AttributeError})


def is_torchs_own(error: Exception) -> bool:
    """Tell whether torch has raised an error itself, and not in the model's forward pass."""
    return type(error) in TORCHS_OWN and not hasattr(error, "attribkit_origin")


class NotReplayable(Exception):
    """The forward pass does something that a replay on other rows could get wrong; the message says what.

    Never an error of the caller's: whoever catches it runs the model itself instead.

    Attributes
    ----------
    lasting : bool
        Whether the reason lies in the model, so that it holds for the next call too.
    warns : bool
        Whether users should hear of it although they left the choice of an engine to attribkit.
    """

    lasting = True
    warns = False


class LooksAtValues(NotReplayable):
    """What the forward pass does depends on the values that it makes of the input."""


class Differs(NotReplayable):
    """What was replayed is not what the model itself returns."""

    lasting = False
    warns = True


class Rounded(NotReplayable):
    """What was replayed is as near to what the model itself returns as rounding lets it, which is not near enough.

    A model that is this sensitive is as far from its own result in exact arithmetic; another image may well pass.
    """

    lasting = False


class Elsewhere(NotReplayable):
    """What is noted depends on more than what the forward pass returns."""

    lasting = False
