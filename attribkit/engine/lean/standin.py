"""Stand-ins for activations that a derivative asks for but reads nothing of."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class StandIn:
    """What is remembered of a tensor: all but its values.

    Torch's derivatives take the activation even where they look at its sizes and strides alone, and choose their path
    by these. With a tensor of the very same strides they do what they would have done, to the bit.
    """

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, tensor: Tensor) -> StandIn:
        """Remember a tensor."""
        return cls(tensor.shape, tensor.stride(), tensor.dtype, tensor.device)

    def beside(self, signal: Tensor) -> Tensor:
        """Return a tensor like the one remembered, of values that mean nothing.

        It lies in the signal's memory where that is large enough (an expanded scalar would be copied out in full by
        convolutions), else in fresh memory that nobody reads.
        """
        span = 1 + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))
        room = signal.untyped_storage().nbytes() // signal.element_size()
        if room >= span and (signal.dtype, signal.device) == (self.dtype, self.device):
            return signal.detach().as_strided(self.shape, self.stride, 0)
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=self.device)
