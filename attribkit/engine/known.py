"""Models in whose forward pass no code of the user's own takes part, as far as can be seen on them."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from torch.nn.modules import module as nn_module

#: Where modules come from that compute with nothing but their inputs and what they themselves hold.
_LIBRARIES = frozenset({"torch", "torchvision", "timm", "attribkit"})

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def is_known(modules: Iterable[nn.Module]) -> bool:
    """Tell whether a model's modules are all of known libraries, and nobody has put hooks or functions on them."""
    if any(getattr(nn_module, f"_global{name}", None) for name in _HOOKS):
        return False
    for module in modules:
        own = vars(module)
        if "forward" in own or any(own.get(name) for name in _HOOKS) or not _is_of_library(type(module)):
            return False
    return True


def is_compiled(module: nn.Module) -> bool:
    """Tell whether a module has been compiled: what it does may pass through no function mode."""
    return type(module).__name__ == "OptimizedModule" or getattr(module, "_compiled_call_impl", None) is not None


def _is_of_library(cls: type) -> bool:
    source = cls.__module__
    return source.partition(".")[0] in _LIBRARIES and not source.startswith("torch.fx")  # which is anybody's code
