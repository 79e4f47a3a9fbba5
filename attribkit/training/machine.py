"""How a run is computed: on which device, in which precision, with how many threads."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from attribkit.errors import InputError

__all__ = ["Machine"]


@dataclass(frozen=True)
class Machine:
    """How a run is computed; of these only ``amp`` and ``channels_last`` change its numbers (by rounding).

    Attributes
    ----------
    device
        Where; None takes CUDA where there is one.
    amp
        ``"auto"`` (CUDA: bf16 where it has it, else fp16; CPU: off), ``"off"``, ``"bf16"`` or ``"fp16"``.
    channels_last
        Whether convolutions see their input with the channels last in memory.
    compile
        Whether ``torch.compile`` is used.
    workers
        Threads that prepare batches; None takes 0 for idx files on a CPU, else up to 4.
    cache
        The most bytes of resized images kept in memory.
    checkpoint_seconds, checkpoint_steps
        The state is written after so many seconds or steps (and after each epoch); with several processes
        seconds do not count.
    """

    device: torch.device | None = None
    amp: str = "auto"
    channels_last: bool = True
    compile: bool = False
    workers: int | None = None
    cache: int = 2 * 2**30
    checkpoint_seconds: float = 60.0
    checkpoint_steps: int = 1000

    def __post_init__(self) -> None:
        """Check what can be checked; `InputError` names what is wrong."""
        if self.amp not in ("auto", "off", "bf16", "fp16"):
            raise InputError(f"amp={self.amp!r} must be auto, off, bf16 or fp16")
        if self.checkpoint_steps < 1:
            raise InputError(f"checkpoint_steps={self.checkpoint_steps} must be at least 1")
        if self.workers is not None and self.workers < 0:
            raise InputError(f"workers={self.workers} must be at least 0")

    def precision(self, device: torch.device) -> torch.dtype | None:
        """Return the type that autocast computes in on a device; None: none but float32."""
        asked = self.amp
        if asked == "off" or (asked == "auto" and device.type != "cuda"):
            return None
        if asked == "fp16" and device.type == "cpu":
            raise InputError("amp='fp16' needs a GPU; a CPU takes bf16")
        if asked == "fp16" or (asked == "auto" and not torch.cuda.is_bf16_supported()):
            return torch.float16
        return torch.bfloat16

    def threads_for(self, device: torch.device, held: bool) -> int:
        """Return how many threads prepare batches; ``held``: the images' bytes are in memory."""
        if self.workers is not None:
            return self.workers
        return 0 if held and device.type == "cpu" else min(4, os.cpu_count() or 1)
