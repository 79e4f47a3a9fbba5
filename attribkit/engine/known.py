"""Models in whose forward pass no code of the user's own takes part, as far as can be seen on them."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterable

from torch import nn
from torch.nn.modules import module as nn_module

from attribkit.engine.hooks import others

#: Where modules come from that compute with nothing but their inputs and what they themselves hold.
_LIBRARIES = frozenset({"torch", "torchvision", "timm", "attribkit"})

#: What there runs functions of anybody's.
_ANYBODYS = ("torch.fx", "torchvision.transforms")

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def is_known(modules: Iterable[nn.Module]) -> bool:
    """Tell whether a model's modules are all of known libraries, and nobody has put hooks or functions on them."""
    if any(getattr(nn_module, f"_global{name}", None) for name in _HOOKS):
        return False
    for module in modules:
        own, cls = vars(module), type(module)
        if any(own.get(name) and others(own[name]) for name in _HOOKS):
            return False
        if not (_is_of_library(cls.__module__) and _is_of_library(getattr(cls.forward, "__module__", None) or "")):
            return False
        if not own.keys().isdisjoint(_methods_of(cls)):  # type: ignore[arg-type]  # one of its own in a method's place
            return False
    return True


@functools.lru_cache(maxsize=1024)
def _methods_of(cls: type) -> frozenset[str]:
    methods = (types.FunctionType, staticmethod, classmethod)
    return frozenset(name for base in cls.__mro__ for name, value in vars(base).items() if isinstance(value, methods))


def is_compiled(module: nn.Module) -> bool:
    """Tell whether a module has been compiled: what it does may pass through no function mode."""
    return type(module).__name__ == "OptimizedModule" or getattr(module, "_compiled_call_impl", None) is not None


def _is_of_library(source: str) -> bool:
    return source.partition(".")[0] in _LIBRARIES and not source.startswith(_ANYBODYS)
