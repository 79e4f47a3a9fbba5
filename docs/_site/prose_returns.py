"""An extension of griffe, which reads the docstrings for the API reference.

numpydoc puts a type on the first line of what a function returns, and prose below it, indented. The docstrings of
attribkit say in prose alone what is returned, as the types stand in the signature. This puts the type before the prose.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_SECTION = re.compile(
    r"(?P<head>^(?:Returns|Yields)\n-+\n)(?P<body>.*?)(?=\n\n[A-Z][\w ]+\n-+\n|\Z)", re.MULTILINE | re.DOTALL
)


class ProseReturns(griffe.Extension):
    """Gives sections that are prose the form that numpydoc asks for."""

    def on_function_instance(self, *, func: griffe.Function, **rest: Any) -> None:
        """Change a function's docstring before it is parsed."""
        if func.docstring is not None:
            func.docstring.value = with_types(func.docstring.value, str(func.returns or "object"))


def with_types(docstring: str, returned: str) -> str:
    """Return a docstring whose ``Returns`` section, if it is prose, is indented below the type."""

    def typed(match: re.Match[str]) -> str:
        lines = match["body"].rstrip().splitlines()
        if any(line.startswith(" ") for line in lines):
            return match.group()
        return "\n".join([f"{match['head']}{returned}", *(f"    {line}" for line in lines)])

    return _SECTION.sub(typed, docstring)
