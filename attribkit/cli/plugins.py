"""``attribkit plugins``: what is installed, what it provides, and how it fares."""

from __future__ import annotations

import click

_STYLES = {"active": "green", "blocked": "yellow", "failed": "red", "incompatible": "red"}


@click.command()
def plugins() -> None:
    """List the plugins: where each comes from, what it provides, and why it is not active if it is not."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from attribkit.cli._tables import print_table
    from attribkit.plugins import manager

    group = click.get_current_context().find_root().command
    if isinstance(group, click.Group):
        group.list_commands(click.get_current_context())  # plugins say which commands they provide when they add them
    found = manager()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("plugin", "distribution", "version", "provides", "state", "reason"):
        table.add_column(column, overflow="fold")
    for plugin in found.plugins:
        provides = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in plugin.provides.items() if names)
        hooks = [hook for hook in plugin.hooks if hook == "attribkit_inverse_layers"]
        if hooks and "inverse_layers" not in plugin.provides:
            provides = "; ".join(filter(None, [provides, "inverse layers"]))  # which ones is known once torch is there
        table.add_row(
            Text(plugin.name, style="bold"),
            Text(plugin.distribution),
            Text(plugin.version),
            Text(provides),
            Text(plugin.state, style=_STYLES[plugin.state]),
            Text(plugin.reason),
        )
    print_table(table)
    for conflict in found.conflicts:
        click.echo(str(conflict))
