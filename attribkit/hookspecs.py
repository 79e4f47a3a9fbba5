"""What a plugin can provide: the hooks, in the order in which they are called.

A plugin is a module, named by an entry point of the group ``attribkit``, with functions of these names marked
``@attribkit.hookimpl``. ``docs/plugins.md`` shows each of them at work; `attribkit.registry` says what a ``register``
accepts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    import click

hookspec = pluggy.HookspecMarker("attribkit")
hookimpl = pluggy.HookimplMarker("attribkit")


@hookspec
def attribkit_methods(register: Callable[..., None]) -> None:
    """Add methods: ``register(MethodClass)``; lazily, ``register("name", "module:Class", summary="…", source="…")``."""


@hookspec
def attribkit_models(register: Callable[..., None]) -> None:
    """Add model sources: ``register("prefix", loader)`` or ``register("prefix", "module:loader")``."""


@hookspec
def attribkit_inverse_layers(register: Callable[..., None]) -> None:
    """Teach the engine operations: ``register("kind", module_class_or_function)``; called on first use, with torch."""


@hookspec
def attribkit_commands(cli: click.Group) -> None:
    """Add commands to ``cli``, a `click.Group`; imports belong inside the commands, so that ``--help`` stays quick."""
