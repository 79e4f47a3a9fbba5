"""Every error and warning attribkit raises on purpose.

Each also derives from the builtin a caller would expect, so ``except ValueError`` keeps working.
"""

from __future__ import annotations

import difflib
import operator
from collections.abc import Iterable


class AttribkitError(Exception):
    """Base of all errors raised by attribkit itself; the message is one line that names the input and the rule."""


class InputError(AttribkitError, ValueError):
    """An argument has a wrong shape, value, type or channel count."""


class InputTypeError(InputError, TypeError):
    """An argument has a wrong type or dtype."""


class UnknownNameError(InputError, LookupError):
    """A method, model, layer or option name is not known; the message suggests the nearest ones."""


class UnknownOptionError(UnknownNameError, TypeError):
    """A method was given an option that it does not have."""


class ModelError(AttribkitError, RuntimeError):
    """The model cannot be used as it is (scripted, quantised, an output that holds no scores, ...)."""


class MethodError(AttribkitError, RuntimeError):
    """An attribution method or an inverse layer broke its contract."""


class CheckpointError(AttribkitError, ValueError):
    """A checkpoint is unreadable, unsafe or does not fit the model."""


class ImageError(AttribkitError, ValueError):
    """An image file cannot be read."""


class PluginError(AttribkitError, RuntimeError):
    """A plugin is broken, unfitting or collides with another one."""


class CoverageWarning(UserWarning):
    """A method with inverse layers met none of its operations, so that its result is the plain gradient.

    Or its table names an op kind that does not exist, so that an inverse layer is never used.
    """


class CoverageError(AttribkitError, CoverageWarning):
    """What ``strict=True`` raises where a `CoverageWarning` would have been given."""


class IncrementalWarning(UserWarning):
    """Incremental inference was asked for, or was under way, and the model was run in full instead."""


class LoadingWarning(UserWarning):
    """Processes that load images die again and again; the one that asked for them loads them itself."""


class PluginWarning(UserWarning):
    """A plugin was skipped; ``attribkit plugins`` shows the reason."""


def is_int(value: object) -> bool:
    """Tell whether ``value`` is an integer: an int or what stands for one (numpy's), no bool, no tensor of several."""
    if isinstance(value, bool) or getattr(value, "ndim", 0) > 0:  # an array of one number is still an array
        return False
    try:
        operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return False
    return True


def as_int(what: str, value: object) -> int:
    """Return ``value`` as an int; `InputTypeError`, naming it ``what``, where it is no integer."""
    if not is_int(value):
        raise InputTypeError(f"{what} must be an int, got {value!r}")
    return operator.index(value)  # type: ignore[arg-type]


def did_you_mean(name: str, known: Iterable[str], limit: int = 3) -> str:
    """Return a clause naming the known names nearest to ``name`` (or the first few when none is near).

    Parameters
    ----------
    name
        What was asked for.
    known
        What exists.
    limit
        The most names listed.
    """
    names = list(dict.fromkeys(known))
    if not names:
        return "there are none"
    lowered = {candidate.lower(): candidate for candidate in reversed(names)}
    near = difflib.get_close_matches(name.lower(), list(lowered), n=limit, cutoff=0.55)
    if near:
        return "did you mean " + " or ".join(repr(lowered[match]) for match in near) + "?"
    shown = ", ".join(repr(candidate) for candidate in names[:8])
    return f"known: {shown}" + (f", … ({len(names)} in all)" if len(names) > 8 else "")
