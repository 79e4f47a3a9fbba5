"""Attribution for any torch vision model: forward hooks attach inverse layers, a method says which goes where.

The names below are loaded on first use, so that ``import attribkit`` imports neither torch nor timm.
"""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING as _TYPE_CHECKING

from attribkit._version import __version__

if _TYPE_CHECKING:
    from attribkit import models as models
    from attribkit.api import MethodInfo, attribute, inspect, methods, project
    from attribkit.attribution import Attribution
    from attribkit.engine.inspection import Inspection
    from attribkit.engine.inverse import InverseLayer
    from attribkit.errors import AttribkitError, CoverageWarning, IncrementalWarning
    from attribkit.hookspecs import hookimpl
    from attribkit.method import InverseMethod, Method
    from attribkit.models.loading import LoadedModel, load_model
    from attribkit.store.reader import open_store
    from attribkit.targets import Unit

_MODULES = {
    "attribkit.api": ("MethodInfo", "attribute", "inspect", "methods", "project"),
    "attribkit.attribution": ("Attribution",),
    "attribkit.engine.inspection": ("Inspection",),
    "attribkit.engine.inverse": ("InverseLayer",),
    "attribkit.errors": ("AttribkitError", "CoverageWarning", "IncrementalWarning"),
    "attribkit.hookspecs": ("hookimpl",),
    "attribkit.method": ("InverseMethod", "Method"),
    "attribkit.models.loading": ("LoadedModel", "load_model"),
    "attribkit.store.reader": ("open_store",),
    "attribkit.targets": ("Unit",),
}
_SOURCES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "AttribkitError",
    "Attribution",
    "CoverageWarning",
    "IncrementalWarning",
    "Inspection",
    "InverseLayer",
    "InverseMethod",
    "LoadedModel",
    "Method",
    "MethodInfo",
    "Unit",
    "__version__",
    "attribute",
    "hookimpl",
    "inspect",
    "load_model",
    "methods",
    "open_store",
    "project",
]


def __getattr__(name: str) -> object:
    """Import a public name, or the subpackage ``models``, on its first use."""
    if name == "models":
        return _import_module("attribkit.models")
    if name not in _SOURCES:
        raise AttributeError(f"module 'attribkit' has no attribute {name!r}")
    found: object = getattr(_import_module(_SOURCES[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """List the public names, whether they are loaded yet or not."""
    return sorted(__all__)
