"""The switches of torch and numpy that hold for a whole thread or process: read, put back, put where few have them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def _set_deterministic(value: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(value[0], warn_only=value[1])


def _deterministic() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def _anomaly() -> tuple[bool, bool]:
    return torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()


def _of_cudnn(name: str) -> tuple[Callable[[], Any], Callable[[Any], None]]:
    return lambda: getattr(torch.backends.cudnn, name), lambda value: setattr(torch.backends.cudnn, name, value)


def _autocast(device: str) -> tuple[Callable[[], Any], Callable[[Any], None]]:
    return lambda: torch.is_autocast_enabled(device), lambda value: torch.set_autocast_enabled(device, value)


#: By name how each is read and how it is set.
SWITCHES: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "grad mode": (torch.is_grad_enabled, torch.set_grad_enabled),
    "the default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "deterministic mode": (_deterministic, _set_deterministic),
    "the precision of matrix products": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    "cudnn's benchmark mode": _of_cudnn("benchmark"),
    "cudnn's deterministic mode": _of_cudnn("deterministic"),
    "anomaly mode": (_anomaly, lambda value: torch.autograd.set_detect_anomaly(*value)),
    "autocast on the CPU": _autocast("cpu"),
    "autocast on the GPU": _autocast("cuda"),
    "the number of torch's threads": (torch.get_num_threads, torch.set_num_threads),
    "what numpy does on errors": (np.geterr, lambda value: np.seterr(**value)),
}
#: Where few have a switch: a method that puts back what is usual leaves something behind there.
_UNUSUAL: dict[str, Any] = {
    "the default dtype": torch.float64,
    "deterministic mode": (True, True),
    "the precision of matrix products": "high",
    "cudnn's benchmark mode": True,
    "cudnn's deterministic mode": True,
    "what numpy does on errors": {"divide": "ignore", "over": "ignore", "under": "warn", "invalid": "ignore"},
}


def states() -> dict[str, Any]:
    """Return where all switches are, by name."""
    return {name: read() for name, (read, _) in SWITCHES.items()}


@contextmanager
def own_switches(*, unusual: bool = False) -> Iterator[None]:
    """Let what runs inside begin with gradients on, and put all switches back as they were afterwards.

    A method that leaves one changed fails the check that looks for it, and not the ones that happen to run next.

    Parameters
    ----------
    unusual
        Whether what runs inside finds some of the switches where few have them.
    """
    before = states()
    try:
        for name, value in {"grad mode": True, **(_UNUSUAL if unusual else {})}.items():
            SWITCHES[name][1](value)
        yield
    finally:
        for name, (read, put) in SWITCHES.items():
            if read() != before[name]:
                put(before[name])
