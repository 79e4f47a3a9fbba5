"""Write docs/commands.md: what each command's ``--help`` prints, from the commands themselves.

Usage: ``python docs/make_commands.py [--check]``. With ``--check`` nothing is written; exit status 1 says that the page
is not what would be written. Plugins' commands are not on the page, whatever is installed.
"""

from __future__ import annotations

import difflib
import sys
from pathlib import Path
from unittest import mock

import click

from attribkit.cli import main as attribkit
from attribkit.cli._group import LazyGroup

PAGE = Path(__file__).parent / "commands.md"
WIDTH = 80
HEAD = """\
# Commands

Written by `make commands` from the commands themselves; do not edit. Each says the same with `--help`. What the
commands of [plugins](plugins.md#attribkit_commandscli) do, their own pages say, such as [`attribkit
evaluate`](evaluation.md).

Exit codes: 0 done; 1 something failed, which is said in one line on stderr (with `--debug`, the traceback too); 2 wrong
usage. Ctrl-C ends with 130.
"""


def help_of(command: click.Command, name: str, parent: click.Context | None = None) -> str:
    """Return what ``--help`` prints, 80 columns wide."""
    with click.Context(
        command, info_name=name, parent=parent, terminal_width=WIDTH, **command.context_settings
    ) as context:
        return command.get_help(context)


def page() -> str:
    """Return the page."""
    parts = [HEAD]
    with (
        mock.patch.object(LazyGroup, "_add_plugins"),
        mock.patch.dict(attribkit.commands, clear=True),
        click.Context(attribkit, info_name="attribkit", **attribkit.context_settings) as parent,
    ):
        parts.append(f"## attribkit\n\n```text\n{help_of(attribkit, 'attribkit')}\n```\n")
        for name in attribkit.list_commands(parent):
            command = attribkit.get_command(parent, name)
            assert command is not None
            parts.append(f"## attribkit {name}\n\n```text\n{help_of(command, name, parent)}\n```\n")
    return "\n".join(parts)


def main(arguments: list[str]) -> int:
    """Write the page, or check it; return the exit status."""
    if arguments not in ([], ["--check"]):
        print("usage: make_commands.py [--check]", file=sys.stderr)
        return 2
    if not arguments:
        PAGE.write_text(page(), encoding="utf-8")
        return 0
    kept, now = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else "", page()
    if kept != now:
        print(f"{PAGE} is not what the commands say: run `make commands`", file=sys.stderr)
        sys.stderr.writelines(difflib.unified_diff(kept.splitlines(True), now.splitlines(True), "the page", "now"))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
