"""An algorithm's options: the parameters of its class and of its ``attribute``, under their own names."""

from __future__ import annotations

import inspect
import re
from typing import Any

from attribkit.errors import InputTypeError, UnknownOptionError, did_you_mean

#: What the plugin passes itself, and what would make the result something else than a map.
OWN = frozenset(
    {
        "self",
        "forward_func",
        "model",
        "inputs",
        "target",
        "additional_forward_args",
        "return_input_shape",
    }
)

_PARAMETER = re.compile(r"^ *(\w+) \([^)]*\): *([\s\S]*?)(?=^ *\w+ \([^)]*\): |^ *Returns?:|\Z)", re.MULTILINE)


def parameters(function: Any) -> dict[str, Any]:
    """Return a function's parameters that are options, with their defaults; None where it has none."""
    kinds = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return {
        each.name: None if each.default is each.empty else each.default
        for each in inspect.signature(function).parameters.values()
        if each.kind in kinds and each.name not in OWN
    }


def required(function: Any) -> set[str]:
    """Return the parameters without a default, ``self`` and ``*args`` aside."""
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    found = inspect.signature(function).parameters.values()
    return {each.name for each in found if each.default is each.empty and each.kind not in kinds} - {"self"}


def options_of(algorithm: type) -> dict[str, Any]:
    """Return the options of an algorithm: those of its class, then those of its ``attribute``."""
    return {**parameters(algorithm.__init__), **parameters(algorithm.attribute)}


def documented(algorithm: type) -> dict[str, str]:
    """Return what Captum's docstrings say of each option: the first sentence."""
    found: dict[str, str] = {}
    for function in (algorithm.__init__, algorithm.attribute):
        for name, text in _PARAMETER.findall(inspect.getdoc(function) or ""):
            sentence = re.split(r"(?<=[a-z)`])\.(?:\s|$)|:\s", " ".join(text.split()), maxsplit=1)[0]
            found.setdefault(name, sentence)
    return found


def refuse_unknown(method: str, options: dict[str, Any], known: dict[str, Any]) -> None:
    """Raise `UnknownOptionError`, naming the nearest, for an option that there is not."""
    for name in options:
        if name not in known:
            raise UnknownOptionError(f"method {method!r} has no option {name!r}; {did_you_mean(name, known)}")


def checked_seed(value: Any) -> int:
    """Return a seed that all three generators take.

    Raises
    ------
    InputTypeError
        It is no int from 0 to 2³² − 1.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**32:
        raise InputTypeError(f"seed must be an int from 0 to 2**32 - 1, got {value!r}")
    return value
