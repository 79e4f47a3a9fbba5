"""``attribkit methods``: what there is to explain a decision with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from attribkit.cli._group import say_warning

if TYPE_CHECKING:
    from attribkit.pluginmanager import PluginManager


@click.command()
@click.argument("names", metavar="[METHOD…]", nargs=-1)
def methods(names: tuple[str, ...]) -> None:
    """List the methods: what each does and which distribution brings it.

    Of each METHOD named, say more: where it was published, what it claims, its options with their defaults.
    """
    from attribkit.plugins import manager

    found = manager()
    if names:
        entries = {name: found.method(name) for name in names}  # all of the names first: a wrong one prints nothing
        click.echo("\n\n".join(_details(name) for name in entries))
    else:
        _list(found)


def _list(found: PluginManager) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from attribkit.cli._tables import print_table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("method", "what it does", "distribution", "version"):
        table.add_column(column, overflow="fold")
    group = ""
    for name, entry in found.methods.items():
        if entry.distribution != group and group:
            table.add_section()
        group = entry.distribution
        table.add_row(Text(name, style="bold"), Text(entry.summary), Text(entry.distribution), Text(entry.version))
    conflicts = [conflict for conflict in found.conflicts if conflict.kind == "method"]
    for conflict in conflicts:
        table.add_row(
            Text(conflict.name, style="bold"),
            Text("not usable: several plugins provide it", style="red"),
            Text(", ".join(plugin.distribution for plugin in conflict.plugins)),
            Text(", ".join(plugin.version for plugin in conflict.plugins)),
        )
    if table.row_count:
        print_table(table)
    else:
        click.echo("no methods: every plugin that brings one is blocked or has a fault")
    skipped = [plugin.name for plugin in found.plugins if plugin.state not in ("active", "blocked")]
    if skipped:
        say_warning(f"plugins with a fault: {', '.join(skipped)}; `attribkit plugins` says which")


def _details(name: str) -> str:
    """Return everything there is to know of a method; this imports it, and torch."""
    import attribkit
    from attribkit.method import failures_of

    info = attribkit.methods()[name]
    lines = [name, f"  {info.summary}"]
    lines += [f"  source: {info.source}"] if info.source else []
    lines.append(f"  of {info.distribution} {info.version}, plugin {info.plugin}")
    lines.append(f"  claims: {', '.join(sorted(info.tags)) or 'nothing beyond what every method is held to'}")
    for check, reason in failures_of(info.load()).items():
        lines.append(f"  does not pass {check}: {reason}")
    options = {option: _shown(default) for option, default in info.options.items()}
    lines += ["  options:", *(f"    {option} = {default}" for option, default in options.items())] if options else []
    return "\n".join(lines)


def _shown(default: object) -> str:
    return getattr(default, "__qualname__", None) or " ".join(repr(default).split())
