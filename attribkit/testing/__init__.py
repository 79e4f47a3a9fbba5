"""The conformance kit: property tests that hold any attribution method to what it claims.

Three doors to the same checks: `check_method` in Python, `parametrize_with_checks` for pytest, ``attribkit check NAME``
in a shell. Needs hypothesis (and pytest for its decorator), but only when used: names are loaded on first use.
"""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING as _TYPE_CHECKING

if _TYPE_CHECKING:
    from attribkit.testing.case import Case, Images, images
    from attribkit.testing.net import Net, seed_weights
    from attribkit.testing.operations import RECTIFIERS, WRITINGS, op
    from attribkit.testing.pytest_door import parametrize_with_checks
    from attribkit.testing.raw import CheckError, explain
    from attribkit.testing.registry import TAGS, Check, all_checks, checks_for
    from attribkit.testing.runner import (
        CheckFailed,
        CheckFailedWarning,
        CheckResult,
        check_method,
        run_check,
        run_checks,
    )
    from attribkit.testing.strategies import cases, image_batches, networks

_MODULES = {
    "case": ("Case", "Images", "images"),
    "net": ("Net", "seed_weights"),
    "operations": ("RECTIFIERS", "WRITINGS", "op"),
    "pytest_door": ("parametrize_with_checks",),
    "raw": ("CheckError", "explain"),
    "registry": ("TAGS", "Check", "all_checks", "checks_for"),
    "runner": ("CheckFailed", "CheckFailedWarning", "CheckResult", "check_method", "run_check", "run_checks"),
    "strategies": ("cases", "image_batches", "networks"),
}
_SOURCES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "RECTIFIERS",
    "TAGS",
    "WRITINGS",
    "Case",
    "Check",
    "CheckError",
    "CheckFailed",
    "CheckFailedWarning",
    "CheckResult",
    "Images",
    "Net",
    "all_checks",
    "cases",
    "check_method",
    "checks_for",
    "explain",
    "image_batches",
    "images",
    "networks",
    "op",
    "parametrize_with_checks",
    "run_check",
    "run_checks",
    "seed_weights",
]


def __getattr__(name: str) -> object:
    """Import a public name on its first use; the checks themselves are public too."""
    if name.startswith("check_") and name not in _SOURCES:
        found: object = getattr(_import_module("attribkit.testing.checks"), name)
    elif name in _SOURCES:
        found = getattr(_import_module(f"attribkit.testing.{_SOURCES[name]}"), name)
    else:
        raise AttributeError(f"module 'attribkit.testing' has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """List the public names, whether they are loaded yet or not."""
    return sorted(__all__)
