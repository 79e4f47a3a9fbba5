"""Options that several commands have: attribkit's own and those of plugins. This module is public."""

from __future__ import annotations

import ast
from typing import Any

import click

METHODS = ("gradient", "guided_backprop", "deconvnet", "occlusion")
"""What is used when no method is named."""


def names(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names in ``--name a,b --name c``, each once; a callback of click's.

    Raises
    ------
    click.BadParameter
        A name is empty.
    """
    found = [name.strip() for value in values for name in value.split(",")]
    if "" in found:
        raise click.BadParameter("a name is empty", ctx, param)
    return tuple(dict.fromkeys(found))


def method_names(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names in ``--method a,b --method c``, `METHODS` for none; a callback of click's."""
    return names(ctx, param, values) or METHODS


def method_options(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Return ``{method: {option: value}}`` from ``METHOD.OPTION=VALUE``; a callback of click's.

    A value is a Python literal or text.

    Raises
    ------
    click.BadParameter
        A text is of another form.
    """
    found: dict[str, dict[str, Any]] = {}
    for text in values:
        name, equals, value = text.partition("=")
        method, dot, option = name.strip().rpartition(".")
        if not (equals and dot and method and option):
            raise click.BadParameter(f"{text!r} is not of the form METHOD.OPTION=VALUE", ctx, param)
        try:
            literal = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            literal = value.strip()
        found.setdefault(method, {})[option] = literal
    return found
