"""The plugin: attribution methods measured. Nothing heavy is imported here."""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING as _TYPE_CHECKING

import attribkit as ak

if _TYPE_CHECKING:
    import click

    from attribkit_quantus.adapter import explain_func as explain_func
    from attribkit_quantus.evaluation import evaluate as evaluate
    from attribkit_quantus.results import Evaluation as Evaluation
    from attribkit_quantus.settings import Settings as Settings

requires_attribkit = ">=0.1,<1"

_SOURCES = {
    "explain_func": "attribkit_quantus.adapter",
    "evaluate": "attribkit_quantus.evaluation",
    "Evaluation": "attribkit_quantus.results",
    "Settings": "attribkit_quantus.settings",
}


def __getattr__(name: str) -> object:
    """Import a public name on its first use: `attribkit --help` loads this module and shall not wait for torch."""
    if name not in _SOURCES:
        raise AttributeError(f"module 'attribkit_quantus' has no attribute {name!r}")
    found: object = getattr(_import_module(_SOURCES[name]), name)
    globals()[name] = found
    return found


@ak.hookimpl
def attribkit_commands(cli: "click.Group") -> None:
    """Add ``attribkit evaluate``."""
    from attribkit_quantus.command import evaluate

    cli.add_command(evaluate)
