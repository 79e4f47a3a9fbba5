"""Function modes: every torch function that this thread calls passes through them, module or not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch.overrides import TorchFunctionMode

from attribkit.engine.layout import MOVES

if TYPE_CHECKING:
    from attribkit.engine.ops import Vocabulary
    from attribkit.engine.walk import Walk


class Interceptor(TorchFunctionMode):
    """Reports every torch function called in this thread to the walk."""

    def __init__(self, walk: Walk) -> None:
        super().__init__()
        self.walk = walk  # until the forward pass ends: see Walk.run
        self.functions = walk.vocabulary.functions
        self.paused = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.paused:
            return func(*args, **kwargs)
        operation = self.functions.get(func)
        if operation is not None:
            return self.walk.call(operation, func, args, kwargs)
        self.walk.splicer.rescue(None, func, args, kwargs)
        output = func(*args, **kwargs)
        if func in MOVES:
            self.walk.layouts.moved(func, args, kwargs)
        return output


class Probe(TorchFunctionMode):
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
