"""``attribkit methods``: what there is to explain a decision with."""

from __future__ import annotations

import click

from attribkit.cli._group import say_warning


@click.command()
def methods() -> None:
    """List the methods: what each does and which distribution brings it."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from attribkit.cli._tables import print_table
    from attribkit.plugins import manager

    found = manager()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("method", "what it does", "distribution", "version"):
        table.add_column(column, overflow="fold")
    for name, entry in found.methods.items():
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
