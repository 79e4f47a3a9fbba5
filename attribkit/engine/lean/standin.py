"""Stand-ins for activations that a derivative asks for but reads nothing of."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def is_dense(tensor: Tensor) -> bool:
    """Tell whether a tensor fills its memory without gaps, channels first or last."""
    return tensor.is_contiguous() or (tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last))


def is_in_order(tensor: Tensor) -> bool:
    """Tell whether a tensor of four dimensions lies in memory in the order of its sizes.

    Torch chooses the layout of its results by the strides, also by those of dimensions of size 1, which
    `Tensor.is_contiguous` does not look at.
    """
    _, channels, height, width = tensor.shape
    return tensor.stride() == (channels * height * width, height * width, width, 1)


def is_plain(tensor: Tensor) -> bool:
    """Tell whether a tensor's memory holds its values as they are, for those who look at the memory alone.

    What a hook or a function of the model's hands on may be sparse, another tensor in disguise, a negation not yet
    carried out, or zeros that take no memory.
    """
    return (
        type(tensor) is Tensor
        and tensor.layout == torch.strided
        and not tensor.is_neg()
        and not tensor._is_zerotensor()
    )


@dataclass(slots=True)
class StandIn:
    """What is remembered of a tensor: all but its values.

    Torch's derivatives take the activation even where they look at its sizes and strides alone, and choose their path
    by these. With a tensor of the very same strides they do what they would have done, to the bit.
    """

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    is_contiguous: bool

    @classmethod
    def of(cls, tensor: Tensor) -> StandIn:
        """Remember a tensor."""
        return cls(tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.is_contiguous())

    @classmethod
    def in_order(cls, shape: tuple[int, ...], order: torch.memory_format, signal: Tensor) -> StandIn:
        """Describe a dense tensor of a signal's kind that lies in a memory format."""
        stride = torch.empty(shape, device="meta", memory_format=order).stride()
        return cls(torch.Size(shape), stride, signal.dtype, signal.device, order is torch.contiguous_format)

    def is_laid_out_as(self, signal: Tensor) -> bool:
        """Tell whether a signal takes memory in the very same way."""
        return (signal.shape, signal.stride(), signal.dtype) == (self.shape, self.stride, self.dtype)

    def beside(self, signal: Tensor) -> Tensor:
        """Return a tensor like the one remembered, of as many samples as the signal and of values that mean nothing.

        It lies in the signal's memory where that is large enough (an expanded scalar would be copied out in full by
        convolutions), else in fresh memory that nobody reads. The signal's storage is not asked for its size: once it
        has been an object of Python's, autograd no longer adds to it in place.
        """
        shape = (signal.shape[0], *self.shape[1:])
        span = 1 + sum((size - 1) * step for size, step in zip(shape, self.stride, strict=True))
        room = signal.numel() if is_dense(signal) else 0
        if room >= span and (signal.dtype, signal.device) == (self.dtype, self.device):
            return signal.detach().as_strided(shape, self.stride)
        return torch.empty_strided(shape, self.stride, dtype=self.dtype, device=self.device)
