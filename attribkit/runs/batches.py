"""How many images go through the model at once, by the memory there is."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from attribkit.engine.state import pristine

__all__ = ["batch_size_for"]

MOST = {"cpu": 16}
"""On a CPU nothing is gained by more; elsewhere `MOST_ELSEWHERE`."""
MOST_ELSEWHERE = 64

SHARE = 2
"""One part in so many of the free memory may be used."""

TIMES = 3
"""What is kept of a forward pass, the signals on their way back, and what operations need beside them."""


def batch_size_for(model: nn.Module, inputs: Tensor, processes: int = 1) -> int:
    """Return a batch size: a power of two, so that small differences of the free memory do not change it.

    Parameters
    ----------
    model
        The model, on its device.
    inputs
        One input [1, C, H, W] on its device.
    processes
        How many share the memory of this machine.

    Raises
    ------
    Exception
        What the model raises.
    """
    most = MOST.get(inputs.device.type, MOST_ELSEWHERE)
    with pristine(model, inputs), torch.no_grad(), _Total() as total:
        model(inputs.clone())
    # what the model is made of may hide from the count (a compiled or custom operation): the input counts anyway
    each = TIMES * max(total.bytes, 8 * inputs.numel() * inputs.element_size())
    room = _free_bytes(inputs.device) // (SHARE * processes) // each
    size = 1
    while 2 * size <= min(most, room):
        size *= 2
    return size


class _Total(TorchFunctionMode):
    """Adds up the bytes of all tensors that functions return, but for views and what was written in place."""

    bytes = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        with torch._C.DisableTorchFunction():
            given = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if _has_storage(t)}
            for tensor in tree_leaves(output):
                if _has_storage(tensor) and tensor.untyped_storage().data_ptr() not in given:
                    self.bytes += tensor.numel() * tensor.element_size()
        return output


def _has_storage(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:  # what could be freed counts too
            return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        pages = os.sysconf("SC_PHYS_PAGES") if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}) else 0
        return pages * os.sysconf("SC_PAGE_SIZE") // 2 if pages else 4 * 2**30
