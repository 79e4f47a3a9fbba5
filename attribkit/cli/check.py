"""``attribkit check NAME``: the conformance kit on a method, in a shell."""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

import click

from attribkit.errors import InputError

if TYPE_CHECKING:
    from attribkit.testing.runner import CheckResult

_STYLES = {"passed": "green", "failed": "red", "xfail": "yellow", "xpass": "yellow"}
_WORDS = {"passed": "passed", "failed": "FAILED", "xfail": "failed, as expected", "xpass": "passed, unexpectedly"}


@click.command()
@click.argument("names", metavar="METHOD…", nargs=-1, required=True)
@click.option("--examples", type=click.IntRange(min=1), default=25, show_default=True, help="Examples for each check.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="What they are drawn with.")
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON instead of a table.")
def check(names: tuple[str, ...], examples: int, seed: int, as_json: bool) -> None:
    """Hold methods to what they claim, over drawn networks, images and targets; exit with 1 if a check fails.

    METHOD is a method's name, or MODULE:CLASS for one that no plugin registers yet (the current folder counts).
    """
    from rich.console import Console
    from rich.progress import Progress

    from attribkit.testing.registry import checks_for
    from attribkit.testing.runner import run_checks, to_json

    methods = [_find(name) for name in names]
    results: list[CheckResult] = []
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("checks", total=sum(1 for method in methods for _ in checks_for(method)))

        def advance(result: CheckResult) -> None:
            results.append(result)
            bar.advance(task)

        for method in methods:
            bar.update(task, description=method.name)
            run_checks(method, examples=examples, seed=seed, on_result=advance)
    if as_json:
        click.echo(to_json(results))
    else:
        _print(results, examples, seed)
    if any(result.status == "failed" for result in results):
        raise click.exceptions.Exit(1)


def _find(name: str) -> Any:
    from attribkit.api import find_method
    from attribkit.method import Method

    if ":" not in name:
        return find_method(name)
    module, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"{name!r} cannot be imported: {error}") from error
    if not isinstance(found, Method) and not (isinstance(found, type) and issubclass(found, Method)):
        raise InputError(f"{name!r} is no attribkit.Method: {found!r}")
    return find_method(found)


def _print(results: list[CheckResult], examples: int, seed: int) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from attribkit.cli._tables import print_table

    for name in dict.fromkeys(result.method for result in results):
        own = [result for result in results if result.method == name]
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=f"{name} (seed {seed})", title_justify="left")
        for column in ("check", "result", "examples", "seconds", "claim"):
            table.add_column(column, overflow="fold", justify="right" if column in ("examples", "seconds") else "left")
        for each in own:
            table.add_row(
                Text(each.check, style="bold"),
                Text(_WORDS[each.status], style=_STYLES[each.status]),
                Text(str(each.examples) if each.examples else ""),
                Text(f"{each.seconds:.1f}"),
                Text(f"{each.claim} Expected to fail: {each.reason}" if each.reason else each.claim),
            )
        print_table(table)
        failed = [each for each in own if each.status == "failed"]
        for each in failed:
            click.echo(f"{each.describe()}\n")
        expected = sum(each.status == "xfail" for each in own)
        also = f", {expected} failed as expected" if expected else ""
        verdict = f"{len(failed)} of {len(own)} checks failed" if failed else f"all {len(own)} checks passed"
        if expected and not failed:
            verdict = f"{len(own) - expected} of {len(own)} checks passed"
        click.echo(f"{name}: {verdict}{also}, {examples} examples each\n")
