"""Hooks on every module of a model, for the time of one forward pass."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

# torch numbers hooks by a counter that two threads can read at once: both would get one number, one hook would be lost
_lock = threading.Lock()


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
    handles: list[Any] = []
    try:
        with _lock:
            for module in modules:
                handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
                handles.append(module.register_forward_hook(leave, with_kwargs=True, always_call=True))
        yield
    finally:
        with _lock:
            for handle in handles:
                handle.remove()
            for module in modules:
                _sweep(module, enter, leave)


def _sweep(module: nn.Module, enter: Callable[..., Any], leave: Callable[..., Any]) -> None:
    """Remove what an interrupt left between a hook's registration and the note of its handle."""
    for hooks, own in ((module._forward_pre_hooks, enter), (module._forward_hooks, leave)):
        for key in [key for key, hook in list(hooks.items()) if hook == own]:
            hooks.pop(key, None)
            module._forward_pre_hooks_with_kwargs.pop(key, None)
            module._forward_hooks_with_kwargs.pop(key, None)
            module._forward_hooks_always_called.pop(key, None)
