"""Function modes: every torch function that this thread calls passes through them, module or not."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils._device import DeviceContext
from torch.utils._pytree import tree_flatten, tree_unflatten

from attribkit.engine.guard import WriteGuard
from attribkit.engine.splice import function_name

if TYPE_CHECKING:
    from torch import nn

    from attribkit.engine.ops import Vocabulary
    from attribkit.engine.walk import Walk


_local = threading.local()

#: What looks at a tensor and computes nothing: models call it more often than all else.
_LOOKS = frozenset(
    {torch._assert, Tensor.size, Tensor.dim, Tensor.stride, Tensor.numel, Tensor.is_floating_point}
    | {getattr(Tensor, name).__get__ for name in ("shape", "ndim", "dtype", "device", "requires_grad", "is_leaf")}
)
#: What a model calls that differentiates on its way up.
_DIFFERENTIATES = frozenset({torch.autograd.grad, torch.autograd.backward, Tensor.backward})
_PLAIN = frozenset({Tensor, Parameter})


def _walks() -> list[Interceptor]:
    """Return this thread's interceptors under way, the outermost first."""
    if not hasattr(_local, "walks"):
        _local.walks = []
    walks: list[Interceptor] = _local.walks
    return walks


@contextmanager
def paused_walks() -> Iterator[None]:
    """Keep the walks under way in this thread from taking what happens now for their model's doing."""
    paused = [walk for walk in _walks() if not walk.paused]
    for walk in paused:
        walk.paused = True
    try:
        yield
    finally:
        for walk in paused:
            walk.paused = False


def only_our_modes() -> bool:
    """Tell whether this thread has no function modes but ours and those that say where tensors are made.

    Others may change what functions compute, or want to see it.
    """
    modes: list[Any] = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]
    return all(isinstance(mode, (DeviceContext, Interceptor, WriteGuard)) for mode in modes)


class Interceptor(TorchFunctionMode):
    """Reports every torch function called in this thread to the walk, mere looks at tensors aside."""

    def __init__(self, walk: Walk) -> None:
        super().__init__()
        self.walk = walk  # until the forward pass ends: see Walk.run
        self.functions = walk.vocabulary.functions
        self.paused = False
        self._looks = _LOOKS if only_our_modes() else frozenset()  # others get to see everything
        self._lean = walk.lean
        self._recorder = walk.lean.recorder if walk.lean is not None else None

    def __enter__(self) -> Interceptor:
        _walks().append(self)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exc: Any) -> None:
        _walks().remove(self)
        super().__exit__(*exc)  # type: ignore[no-untyped-call]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        lean = self._lean if self._lean is not None and self._lean.pixels.any else None
        if func in self._looks and _PLAIN.issuperset(types) and (lean is None or func is not Tensor.stride):
            with torch._C.DisableTorchFunction():
                return func(*args, **kwargs)
        if self.paused:
            return func(*args, **kwargs)
        by_pixels = lean is not None and lean.meets(func, args, kwargs)
        output = self._run(func, args, kwargs)
        if lean is not None and by_pixels:
            lean.pixels.note(output)
        if self._recorder is not None:
            self._recorder.function(self.functions.get(func), func, args, kwargs, output)
        return output

    def _run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run a function that the model calls."""
        operation = self.functions.get(func)
        if operation is not None:
            return self.walk.call(operation, func, args, kwargs)
        if func is Tensor.register_hook:
            self.walk.plain_graph = False
        if func in _DIFFERENTIATES:
            return self.walk.differentiate(func, args, kwargs)
        self.walk.splicer.rescue(None, func, args, kwargs)
        output = func(*args, **kwargs)
        if self.walk.layouts.active:
            self.walk.layouts.after(None, function_name(func), args, kwargs, output)
        return output


def calls_a_rectifier(module: nn.Module, vocabulary: Vocabulary, args: Any, kwargs: Any) -> bool:
    """Run a module on copies of its arguments and tell whether it calls a rectifier function.

    Parameters
    ----------
    module
        A small one: it runs once more.
    vocabulary
        Says what a rectifier is.
    args, kwargs
        What it is about to be called with.
    """
    leaves, spec = tree_flatten((args, kwargs))
    copies = [leaf.detach().clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    own_args, own_kwargs = tree_unflatten(copies, spec)
    probe = _Probe(vocabulary)
    with paused_walks(), torch.no_grad(), probe:
        module.forward(*own_args, **own_kwargs)
    return probe.found


class _Probe(TorchFunctionMode):
    """Notes whether a rectifier function is called."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.functions = vocabulary.functions
        self.found = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        operation = self.functions.get(func)
        if operation is not None and operation.kind_of_call(args, kwargs or {}) == "rectifier":
            self.found = True
        return func(*args, **(kwargs or {}))
