"""Hooks on every module of a model, for the time of one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from attribkit.engine.walk import Walk

#: Modules that call others, or none, and compute nothing themselves.
_HAND_ON = frozenset({nn.Identity, nn.Sequential, nn.ModuleList, nn.ModuleDict})


def those_that_compute(model: nn.Module, modules: Iterable[nn.Module], walk: Walk) -> list[nn.Module]:
    """Return the modules in which, or as which, there may be a site.

    Parameters
    ----------
    model
        The model, which is always one of them.
    modules
        All of its modules.
    walk
        Says what is to be attached, and which classes are operations as a whole.
    """
    if walk.table.names:
        return list(modules)
    plain = {cls for cls in _HAND_ON if not walk.vocabulary.module_kind(cls) and not walk.table.by_class(cls)}
    return [
        module
        for module in modules
        if type(module) not in plain
        or module is model
        or "forward" in module.__dict__
        or module._forward_hooks
        or module._forward_pre_hooks
    ]


class _Key:
    """The key of a walk's hooks: nobody else's hooks have it; torch's numbers can be given to two threads at once."""


def others(hooks: Mapping[Any, Any]) -> list[Any]:
    """Return the keys of hooks that are no walk's, of this thread or another."""
    return [key for key in list(hooks) if type(key) is not _Key]  # a list at once: another thread may add hooks


@contextmanager
def hooked(modules: Iterable[nn.Module], enter: Callable[..., Any], leave: Callable[..., Any]) -> Iterator[None]:
    """Call ``enter`` before and ``leave`` after each module's forward.

    They get ``(module, args, kwargs)`` and ``(module, args, kwargs, output)``. ``leave`` is also called, with None for
    output, where the forward raised. Whatever happens, no hook stays.

    Parameters
    ----------
    modules
        The modules, each once.
    enter, leave
        What they return replaces the arguments and the output; None leaves them.
    """
    modules = list(modules)
    key: Any = _Key()
    try:
        for module in modules:
            # what torch's own `register_` methods do, but for the handles, two for each module, which take longer than
            # all else; the notes come first: a call in another thread sees no hook, or a whole one
            module._forward_pre_hooks_with_kwargs[key] = True
            module._forward_hooks_with_kwargs[key] = True
            module._forward_hooks_always_called[key] = True
            module._forward_pre_hooks[key] = enter
            module._forward_hooks[key] = leave
        yield
    finally:
        for module in modules:
            _remove(module, key)


def _remove(module: nn.Module, key: Any) -> None:
    for hooks in (
        module._forward_pre_hooks,
        module._forward_hooks,
        module._forward_pre_hooks_with_kwargs,
        module._forward_hooks_with_kwargs,
        module._forward_hooks_always_called,
    ):
        hooks.pop(key, None)
