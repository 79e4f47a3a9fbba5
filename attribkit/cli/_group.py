"""The command group: commands imported when asked for, options that hold everywhere, errors in one line."""

from __future__ import annotations

import errno
import importlib
import shlex
import sys
import traceback
import unicodedata
import warnings
from collections.abc import Sequence
from typing import Any

import click

from attribkit.errors import (
    AttribkitError,
    CoverageWarning,
    IncrementalWarning,
    LoadingWarning,
    PluginError,
    PluginWarning,
    did_you_mean,
)

DEBUG = "attribkit.debug"
COMMAND_LINE = "attribkit.command_line"


class LazyGroup(click.Group):
    """A group whose own commands are imported on first use; plugins add theirs when the list of all is needed.

    Parameters
    ----------
    lazy_commands
        Maps names to ``"module:attribute"``.
    """

    def __init__(self, *args: Any, lazy_commands: dict[str, str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lazy_commands = lazy_commands
        self._plugins_of: object = None
        self.params += [
            click.Option(
                ["-p", "blocked"],
                multiple=True,
                metavar="no:NAME",
                is_eager=True,
                expose_value=False,
                callback=_block,
                help="Do without the plugin (or the distribution) NAME: it is not imported. May be repeated.",
            ),
            click.Option(
                ["--debug"],
                is_flag=True,
                is_eager=True,
                expose_value=False,
                callback=_set_debug,
                help="Show the traceback of an error, and all warnings.",
            ),
        ]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Move the options that hold everywhere to the front, so that they may stand after the command too."""
        ctx.meta[COMMAND_LINE] = shell_command(["attribkit", *args])
        ctx.with_resource(warnings.catch_warnings())
        warnings.showwarning = _show_warning(ctx)
        return super().parse_args(ctx, _global_first(args))

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands: attribkit's own first, then the plugins' in alphabetical order."""
        self._add_plugins()
        return [*self.lazy_commands, *sorted(set(self.commands) - set(self.lazy_commands))]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command; plugins are asked only for a name that is not attribkit's own."""
        if cmd_name in self.lazy_commands:
            module, _, attribute = self.lazy_commands[cmd_name].partition(":")
            command: click.Command = getattr(importlib.import_module(module), attribute)
            return command
        self._add_plugins()
        return super().get_command(ctx, cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; a wrong name is answered with the nearest ones."""
        if not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            ctx.fail(f"No such command {args[0]!r}: {did_you_mean(args[0], self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; an error becomes one line on stderr and exit code 1."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except KeyboardInterrupt:
            click.echo("attribkit: interrupted", err=True)
            raise click.exceptions.Exit(130) from None
        except Exception as error:
            if isinstance(error, OSError) and error.errno == errno.EPIPE:
                raise  # the reader went away (`attribkit methods | head`): click ends quietly
            _show_traceback(ctx, error)
            say_error(describe(error))
            raise click.exceptions.Exit(1) from None

    def _add_plugins(self) -> None:
        """Let the plugins add their commands, once for each plugin manager."""
        from attribkit.plugins import manager

        current = manager()
        if self._plugins_of is not current:
            self._plugins_of = current  # first: the manager asks for the list of commands while it adds to it
            self.commands.clear()
            current.add_commands(self)


def describe(error: BaseException) -> str:
    """Return an error as one line: attribkit's own by the message, others with the type, a model's named as such."""
    message = " ".join(str(error).split())
    if isinstance(error, AttribkitError):
        return message or type(error).__name__
    typed = f"{type(error).__name__}: {message}" if message else type(error).__name__
    if getattr(error, "attribkit_origin", None) == "model forward":
        return f"the model's forward raised {typed}"
    return f"{typed} (--debug shows where)"


def say_error(message: str) -> None:
    """Write one line about an error to stderr."""
    _say(f"attribkit: error: {printable(message)}\n")


def say_warning(message: str) -> None:
    """Write one line about something that is no error to stderr."""
    _say(f"attribkit: warning: {printable(message)}\n")


def _say(text: str) -> None:
    # Not click.echo: it writes past the stand-in for stderr by which a progress bar makes room for other lines.
    print(text, end="", file=sys.stderr, flush=True)


def report_failure(path: str, error: Exception) -> None:
    """Write one line about an image that failed to stderr, after the traceback where ``--debug`` is on."""
    _show_traceback(click.get_current_context(silent=True), error)
    say_error(f"{path}: {describe(error).removeprefix(f'{path}: ')}")


def _show_traceback(ctx: click.Context | None, error: Exception) -> None:
    if ctx is not None and ctx.meta.get(DEBUG):
        _say("".join(traceback.format_exception(error)))


def printable(text: str) -> str:
    """Return text on one line, without control characters (a file's name may hold any)."""
    readable = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return "".join(char if _shows(char) else char.encode("unicode_escape").decode("ascii") for char in readable)


def shell_command(words: Sequence[str]) -> str:
    r"""Return a command line on one line that a shell reads as these words again.

    What a line cannot show (control characters, bytes that are no text) stands as ``$'\n'``, which bash, ksh and zsh
    read, and every shell by POSIX of 2024.
    """
    return " ".join(shlex.quote(word) if printable(word) == word else _escaped(word) for word in words)


def _escaped(word: str) -> str:
    escaped = ""
    for char in word:
        if char in "\\'":
            escaped += f"\\{char}"
        elif _shows(char):
            escaped += char
        else:
            escaped += "".join(f"\\x{byte:02x}" for byte in char.encode("utf-8", "surrogateescape"))
    return f"$'{escaped}'"


def _shows(char: str) -> bool:
    return char.isprintable() or unicodedata.category(char) == "Zs"


def _global_first(args: list[str]) -> list[str]:
    """Return the arguments with ``--debug`` and ``-p no:NAME`` moved to the front."""
    front: list[str] = []
    rest: list[str] = []
    position = 0
    while position < len(args):
        arg = args[position]
        following = args[position + 1] if position + 1 < len(args) else ""
        if arg == "--":
            rest += args[position:]
            break
        if arg == "--debug" or arg.startswith("-pno:"):
            front.append(arg)
        elif arg == "-p" and following.startswith("no:"):
            front += [arg, following]
            position += 1
        else:
            rest.append(arg)
        position += 1
    return front + rest


def _block(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> None:
    from attribkit import plugins

    names = []
    for value in values:
        kind, _, name = value.partition(":")
        if kind != "no" or not name:
            raise click.BadParameter(f"{value!r} is not of the form no:NAME", ctx, param)
        names.append(name)
    if names:
        try:
            plugins.block(names)
        except PluginError as error:
            raise click.UsageError(str(error), ctx) from None


def _set_debug(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    ctx.meta[DEBUG] = value


def _show_warning(ctx: click.Context) -> Any:
    """Return a `warnings.showwarning` that writes attribkit's warnings in one line, others only with ``--debug``."""

    def show(message: Any, category: type[Warning], filename: str, lineno: int, *rest: Any, **kwargs: Any) -> None:
        if issubclass(category, PluginWarning | CoverageWarning | IncrementalWarning | LoadingWarning):
            say_warning(" ".join(str(message).split()))
        elif ctx.meta.get(DEBUG):
            sys.stderr.write(warnings.formatwarning(message, category, filename, lineno))

    return show
