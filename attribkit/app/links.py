"""A view as the query of an address, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any
from urllib.parse import urlencode

from attribkit.app.view import FIELDS, Display, View
from attribkit.errors import InputError

ALWAYS = ("model", "picture")
"""Written even where they are the defaults: these depend on what is installed where the link is opened."""

LONGEST = 2000
"""Characters of one value that are read."""


def to_query(view: View, default: View) -> str:
    """Return the query that `from_query` makes the view of again: only what differs from the default.

    Parameters
    ----------
    view, default
        What to write, and what a page without a query shows.
    """
    values, usual = _flat(view), _flat(default)
    kept = {name: value for name, value in values.items() if name in ALWAYS or value != usual[name]}
    return urlencode({name: _text(value) for name, value in kept.items()}, safe="/:,")


def from_query(query: Mapping[str, str], default: View) -> tuple[View, list[str]]:
    """Return the view that a query describes, and what could not be understood, a line each.

    Parameters
    ----------
    query
        Names and values, as text. Names that mean nothing here are passed over.
    default
        What is taken for what is missing or wrong.
    """
    view, complaints = default, []
    for name in FIELDS:
        if name not in query:
            continue
        text = str(query[name])[:LONGEST]
        try:
            value = _READERS.get(name, str)(text)
            if name in _DISPLAY:
                view = replace(view, display=replace(view.display, **{name: value}))
            else:
                view = replace(view, **{name: value})
        except InputError as error:
            complaints.append(f"the link's {str(error)[:150]}")
        except ValueError:
            complaints.append(f"the link's {name} is {text[:80]!r}, which is no {_KINDS.get(name, 'number')}")
    return view, complaints


_DISPLAY = frozenset(field.name for field in fields(Display))


def _flat(view: View) -> dict[str, Any]:
    return {name: getattr(view.display if name in _DISPLAY else view, name) for name in FIELDS}


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, tuple):
        return ",".join(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def _whole(text: str) -> int | None:
    return int(text) if text else None


_READERS: dict[str, Callable[[str], Any]] = {
    "methods": _names,
    "layer": lambda text: text or None,
    **dict.fromkeys(("target", "channel", "window", "stride"), _whole),
    **dict.fromkeys(("opacity", "percentile"), float),
}
_KINDS = dict.fromkeys(("target", "channel", "window", "stride"), "whole number")
