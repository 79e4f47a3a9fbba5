"""What an action changes in the page, by the names of its parts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from attribkit.app import pages
from attribkit.app.session import Session

Changes = Iterator[dict[str, Any]]
"""A value is a part's new content, or a `Field` for a control."""


@dataclass(frozen=True)
class Field:
    """A control's new state; what is None stays as it is, but for ``value`` with ``clear``."""

    value: Any = None
    choices: Sequence[Any] | None = None
    clear: bool = False


def link(session: Session) -> dict[str, Any]:
    """Return the changes of the link, which is the page's address, too."""
    return {"link": pages.link(session), "address": pages.address(session)}
