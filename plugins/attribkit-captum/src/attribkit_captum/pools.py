"""Dilated max pooling for Captum's DeepLIFT, which carries back through `torch.nn.functional.max_unpool2d`.

That has no dilation: where windows reach further than it expects, it refuses the size of the pool's input.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DilatedPool(nn.Module):
    """A dilated max pooling as one without dilation, where Captum could not carry back through it.

    Parameters
    ----------
    pool
        The module, which pools whatever Captum can carry back.
    """

    def __init__(self, pool: nn.MaxPool2d) -> None:
        super().__init__()
        self.pool = pool
        self.spread = nn.MaxPool2d(pool.kernel_size)
        self.train(pool.training)

    def forward(self, x: Tensor) -> Tensor:
        """Return the pooled maps of ``x`` [..., H, W]."""
        pool = self.pool
        settings = [_pair(each) for each in (pool.kernel_size, pool.stride, pool.padding, pool.dilation)]
        sides = x.shape[-2:]
        # the shape alone: what it holds is worked out once, by the module that Captum has hooked
        meta = torch.empty_like(x, device="meta")
        counts = F.max_pool2d(meta, *settings, pool.ceil_mode).shape[-2:]
        axes = list(zip(sides, counts, *settings, strict=True))
        if all(_unpools(side, count, *rest[:3]) for side, count, *rest in axes):
            return pool(x)
        for dim, (side, count, kernel, stride, padding, dilation) in zip((-2, -1), axes, strict=True):
            first = torch.arange(count, device=x.device) * stride - padding
            places = (first[:, None] + torch.arange(kernel, device=x.device) * dilation).flatten()
            x = _taken(x, dim, places, side)
        return self.spread(x)


def without_dilation(network: nn.Module) -> None:
    """Put a `DilatedPool` in the place of each ``nn.MaxPool2d`` with a dilation; ``network`` is changed."""
    made: dict[nn.Module, DilatedPool] = {}
    for parent in list(network.modules()):
        for name, child in parent._modules.items():
            if type(child) is nn.MaxPool2d and _pair(child.dilation) != (1, 1) and not child.return_indices:
                parent._modules[name] = made.setdefault(child, DilatedPool(child))


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _unpools(side: int, count: int, kernel: int, stride: int, padding: int) -> bool:
    """Tell whether ``max_unpool2d`` takes ``side`` for the size that ``count`` windows were read from."""
    expected = (count - 1) * stride + kernel - 2 * padding
    return expected - stride < side < expected + stride


def _taken(x: Tensor, dim: int, places: Tensor, side: int) -> Tensor:
    """Return the rows or columns at ``places``; those outside the map hold what no window picks."""
    found = x.index_select(dim, places.clamp(0, side - 1))
    shape = [1] * x.ndim
    shape[dim] = len(places)
    outside = ((places < 0) | (places >= side)).reshape(shape)
    return found.masked_fill(outside, torch.finfo(x.dtype).min)
