"""Signals that nobody else holds: what becomes of them may take their memory."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

from attribkit.engine.lean.standin import is_plain

#: References to a signal, to its tensor in C++, to its storage's object and to its storage in C++.
Holders = tuple[int, int, int, int]


def holders(signal: Tensor) -> Holders | None:
    """Count who holds a signal or its memory; None where that cannot be told.

    Everything that may look at the memory later is counted somewhere: another way back that gets the same tensor, a
    hook that has kept it, a view, an alias, an array of numpy's made from it. Memory that was not allocated by torch
    may have holders that torch knows nothing of; memory that is not written to as it is has no holders to count.
    """
    if not is_plain(signal) or signal.is_inference():
        return None
    storage = signal.untyped_storage()
    if not storage.resizable() or storage.is_shared():
        return None
    uses = signal._use_count()  # type: ignore[attr-defined]
    return (
        sys.getrefcount(signal),
        uses,
        sys.getrefcount(storage),
        torch._C._storage_Use_Count(storage._cdata),
    )


class Alone:
    """Tells whether the function that gets a signal on its way back is the only one who holds it.

    How many references torch and Python themselves have at that moment depends on their versions, so a signal that is
    alone for certain is counted once. Where that does not work, no signal counts as alone.
    """

    def __init__(self) -> None:
        self._fewest: Holders | None = None
        self._possible = hasattr(Tensor, "_use_count") and hasattr(torch._C, "_storage_Use_Count") and _counts_all()

    def prepare(self) -> None:
        """Count a signal that is alone, if that has not been done; to be called before the way back."""
        if self._possible and self._fewest is None and _undisturbed():
            self._fewest = _counted()
            self._possible = self._fewest is not None

    def __call__(self, found: Holders | None) -> bool:
        """Tell whether these are the holders of a signal that is alone."""
        return found is not None and found == self._fewest


def _counts_all() -> bool:
    """Tell whether Python counts every reference: without its global lock it does not."""
    return bool(getattr(sys, "_is_gil_enabled", lambda: True)())


def _undisturbed() -> bool:
    """Tell whether nobody looks on who might hold what we count."""
    return (
        sys.gettrace() is None
        and sys.getprofile() is None
        and not torch.is_anomaly_enabled()
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._functorch.peek_interpreter_stack() is None
        and torch._C._autograd._top_saved_tensors_default_hooks(True) is None
    )


def _counted() -> Holders | None:
    """Return the holders of a signal that is alone; None where they are not the same each time."""
    with torch._C.DisableTorchFunction(), torch.inference_mode(False), torch.enable_grad():
        found: list[Holders | None] = []
        for _ in range(2):
            x = torch.zeros(1, device="cpu", requires_grad=True)
            torch.autograd.grad(_Counts.apply(x, found) * 2, x)
    return found[0] if found[0] == found[1] else None


class _Counts(torch.autograd.Function):
    """Counts the holders of its signal, at the place where `_Lean` does."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, found: list[Holders | None]) -> Tensor:
        ctx.found = found
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *signals: Tensor) -> tuple[Tensor, None]:
        (signal,) = signals
        ctx.found.append(holders(signal))
        return signal, None


is_alone = Alone()
