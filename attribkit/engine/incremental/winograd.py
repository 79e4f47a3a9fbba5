"""Convolutions of 3×3 with fewer multiplications: Winograd's F(2×2, 3×3).

A tile of 2×2 outputs takes 16 products for each pair of channels, where the sum by its definition takes 36. Inputs are
transformed by sums and differences, weights by sums and halves: rounding is no worse than that of the definition, whose
sums are longer. In between there is a product of matrices for each of the 16 places.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

#: What the sums around the products cost for a channel of a tile, in multiplications (measured on 64 to 512 channels).
_TOUCH = 825

#: Tiles that go at once, so that what is made of them stays in the caches.
_TILES = 768

#: Tiles of a call from which on the products are matrices worth the name.
_FEWEST = 64


def pays(shape: Sequence[int], weight: Tensor) -> bool:
    """Tell whether a convolution of inputs [B, C, H, W], padded already, by a weight [D, C, 3, 3] is faster so."""
    outputs, inputs = weight.shape[:2]
    height, width = shape[2] - 2, shape[3] - 2
    tiles = -(-height // 2) * -(-width // 2)
    sums = _TOUCH * (inputs + outputs)
    products = inputs * outputs
    return shape[0] * tiles >= _FEWEST and 9 * height * width * products > 1.05 * tiles * (16 * products + sums)


class Winograd:
    """A convolution of stride 1 by a weight [D, C, 3, 3] and a bias [D], of inputs that are padded already."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        rows = _spread(weight.unbind(2))
        self.weights = [[_pack(part) for part in _spread(row.unbind(2))] for row in rows]
        self.outputs, self.bias = len(weight), bias

    def __call__(self, x: Tensor, act: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the convolution of ``x`` [B, C, H, W], channels last, with an activation, which may be in place."""
        count, channels, height, width = x.shape
        height, width = height - 2, width - 2
        down, across = -(-height // 2), -(-width // 2)
        if height % 2 or width % 2:
            x = F.pad(x, (0, width % 2, 0, height % 2))
        x = x.permute(0, 2, 3, 1)
        out = x.new_empty(count, 2 * down, 2 * across, self.outputs)
        step = min(count, max(1, _TILES // (down * across)))
        sizes = ((4, step, down, 2 * across + 2, channels), (16, step * down * across, channels),
                 (8, step * down * across, self.outputs))  # fmt: skip
        room = [x.new_empty(math.prod(size)) for size in sizes]
        for start in range(0, count, step):
            part = out[start : start + step]
            self._run(x[start : start + step], part, room)
            acted = act(part)
            if acted is not part:
                part.copy_(acted)
        return out[:, :height, :width].permute(0, 3, 1, 2)

    def _run(self, x: Tensor, out: Tensor, room: Sequence[Tensor]) -> None:
        count, _, width, channels = x.shape
        down, across = out.shape[1] // 2, out.shape[2] // 2
        tiles = count * down * across
        rows = _shaped(room[0], 4, count, down, width, channels)
        _differences([x[:, i : i + 2 * down : 2] for i in range(4)], rows.unbind(0))
        places = _shaped(room[1], 4, 4, count, down, across, channels)
        _differences([rows[:, :, :, j : j + 2 * across : 2] for j in range(4)], places.unbind(1))
        places = places.view(4, 4, tiles, channels)
        halves = _shaped(room[2], 2, 4, tiles, self.outputs)
        for j in range(4):
            # a bias at this place of a tile comes out once at each of its outputs
            biases = (None, self.bias if j == 1 else None, None, None)
            products = [_product(places[i, j], self.weights[i][j], biases[i]) for i in range(4)]
            _sums(products, halves[:, j].unbind(0))
        halves = halves.view(2, 4, count, down, across, self.outputs)
        out = out.view(count, down, 2, across, 2, self.outputs)
        for i in range(2):
            _sums(halves[i].unbind(0), out[:, :, i].unbind(3))


def _shaped(room: Tensor, *shape: int) -> Tensor:
    """Return the beginning of a buffer as a tensor."""
    return room[: math.prod(shape)].view(shape)


def _spread(w: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return the four transformed weights of three along one axis."""
    ends = w[0] + w[2]
    return w[0], (ends + w[1]) / 2, (ends - w[1]) / 2, w[2]


def _differences(x: Sequence[Tensor], out: Sequence[Tensor]) -> None:
    """Transform four inputs along one axis."""
    torch.sub(x[0], x[2], out=out[0])
    torch.add(x[1], x[2], out=out[1])
    torch.sub(x[2], x[1], out=out[2])
    torch.sub(x[1], x[3], out=out[3])


def _sums(m: Sequence[Tensor], out: Sequence[Tensor]) -> None:
    """Transform four products, which are used up, to the two outputs along one axis."""
    m[0].add_(m[1])
    torch.add(m[0], m[2], out=out[0])
    m[1].sub_(m[2])
    torch.sub(m[1], m[3], out=out[1])


def _pack(weight: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _TILES)
    return packed


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product
