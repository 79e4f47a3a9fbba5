"""The dense kernels: convolutions with folded batch norms and fused activations, on channels-last batches."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from attribkit.engine.incremental import winograd
from attribkit.engine.incremental.graph import Node

#: An activation: oneDNN's name for it, its numbers, and how to apply it in place.
Activation = tuple[str, list[Any], str]

_NONE: Activation = ("none", [], "")

#: Up to how many elements the weights of linear layers are laid out anew.
_PACKED = 1 << 22


class Convolution:
    """A convolution with an activation after it.

    Parameters
    ----------
    weight, bias
        As for ``F.conv2d``; only read.
    stride, padding, dilation, groups
        Pairs and a number.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, int],
        padding: tuple[int, int],
        dilation: tuple[int, int],
        groups: int,
    ) -> None:
        self.weight, self.bias = weight.detach(), bias.detach() if bias is not None else None
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        self.act: Activation | None = None
        self.folded = False
        self._packed: dict[tuple[Any, ...], Tensor] = {}
        self._layouts: dict[bytes, Tensor] = {}
        self._prepared = False
        self._fused = False
        self._may_be_tiled = False
        self._winograd: winograd.Winograd | None = None

    def fuses(self) -> bool:
        """Tell whether it does what the model has other operations for."""
        return self.folded or (self.act is not None and _has_onednn(self.weight))

    def bytes(self) -> int:
        """Return about how many bytes it holds once it has run: a copy, an order of oneDNN's and tiles."""
        return 3 * self.weight.numel() * self.weight.element_size()

    def fold(self, scale: Tensor, shift: Tensor) -> None:
        """Follow the convolution by a scale and a shift of its output channels."""
        scale, shift = scale.flatten().double(), shift.flatten().double()
        dtype = self.weight.dtype
        before = 0 if self.bias is None else self.bias.double() * scale
        self.weight = (self.weight.double() * scale.view(-1, 1, 1, 1)).to(dtype)
        self.bias = (before + shift).to(dtype)
        self.folded = True

    def _prepare(self) -> None:
        self.weight = self.weight.contiguous(memory_format=torch.channels_last)
        self._fused = _has_onednn(self.weight)
        plain = (self.stride, self.dilation, self.groups) == ((1, 1), (1, 1), 1)
        self._may_be_tiled = plain and self.weight.shape[2:] == (3, 3)
        self._prepared = True

    def __call__(self, x: Tensor, padding: tuple[int, int] | None = None) -> Tensor:
        """Return the convolution of ``x`` [B, C, H, W], padded by ``padding`` (default its own)."""
        if not self._prepared:
            self._prepare()
        padding = self.padding if padding is None else padding
        if self._fused and x.numel():
            if self._may_be_tiled:
                padded = (len(x), x.shape[1], x.shape[2] + 2 * padding[0], x.shape[3] + 2 * padding[1])
                # sums and differences make of one infinity no number, for the whole tile
                if winograd.pays(padded, self.weight) and x.sum().isfinite():
                    return self._by_winograd(x, padding)
            return self._by_onednn(x, padding)
        y = F.conv2d(x, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)
        return apply(self.act, y)

    def _by_winograd(self, x: Tensor, padding: tuple[int, int]) -> Tensor:
        if self._winograd is None:
            self._winograd = winograd.Winograd(self.weight, self.bias)
        x = F.pad(x, (padding[1], padding[1], padding[0], padding[0])) if any(padding) else x
        return self._winograd(x.contiguous(memory_format=torch.channels_last), lambda y: apply(self.act, y))

    def _by_onednn(self, x: Tensor, padding: tuple[int, int]) -> Tensor:
        packed = self._packed.get((padding, x.shape[2:]))
        if packed is None:
            packed = self._packed[padding, x.shape[2:]] = self._pack(x, padding)
        name, numbers, algorithm = self.act if self.act is not None else _NONE
        y: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, packed, self.bias, padding, self.stride, self.dilation, self.groups, name, numbers, algorithm
        )
        return y

    def _pack(self, x: Tensor, padding: tuple[int, int]) -> Tensor:
        """Return the weights as oneDNN wants them for inputs of this shape; in another order a call is far slower.

        Most shapes share one of a few orders, each of which is kept once.
        """
        packed: Tensor = torch.ops.mkldnn._reorder_convolution_weight(
            self.weight, padding, self.stride, self.dilation, self.groups, list(x.shape)
        )
        if not hasattr(torch.ops.mkldnn, "_get_mkldnn_serialized_md") or not packed.is_mkldnn:
            return packed
        layout = torch.ops.mkldnn._get_mkldnn_serialized_md(packed).numpy().tobytes()
        return self._layouts.setdefault(layout, packed)


class Linear:
    """A linear layer with an activation after it.

    Parameters
    ----------
    weight, bias
        As for ``F.linear``; only read.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight.detach(), bias.detach() if bias is not None else None
        self.act: Activation | None = None
        self._fused = _has_onednn(weight)
        self._packed: Tensor | None = None

    def fuses(self) -> bool:
        """Tell whether it does what the model has other operations for."""
        return self.act is not None and self._fused

    def bytes(self) -> int:
        """Return how many bytes it lays out anew."""
        return self.weight.numel() * self.weight.element_size() if self.weight.numel() <= _PACKED else 0

    def __call__(self, x: Tensor) -> Tensor:
        """Return the linear layer's output for ``x`` [B, C]."""
        if self._fused and x.numel():
            if self._packed is None:
                # laying large ones out anew costs more than it saves
                small = self.weight.numel() <= _PACKED
                weight = self.weight.contiguous()
                self._packed = torch.ops.mkldnn._reorder_linear_weight(weight, len(x)) if small else weight
            y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, *(self.act or _NONE))
            return y
        return apply(self.act, F.linear(x, self.weight, self.bias))


def _has_onednn(weight: Tensor) -> bool:
    """Tell whether oneDNN's operations with activations take such weights."""
    return (
        weight.dtype == torch.float32
        and weight.device.type == "cpu"
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and all(hasattr(torch.ops.mkldnn, name) for name in ("_convolution_pointwise", "_linear_pointwise"))
    )


def activation(node: Node) -> Activation | None:
    """Return the activation that a call is, where it is one that kernels can apply themselves."""
    a = node.arguments()
    if node.name == "relu":
        return "relu", [], ""
    if node.name == "hardtanh":
        return "hardtanh", [a["min_val"], a["max_val"]], ""
    if node.name == "silu":
        return "swish", [], ""
    if node.name in ("sigmoid", "tanh", "hardswish", "hardsigmoid"):
        return node.name, [], ""
    if node.name == "leaky_relu":
        return "leaky_relu", [a["negative_slope"]], ""
    if node.name == "gelu":
        return "gelu", [], a["approximate"]
    return None


def apply(act: Activation | None, y: Tensor) -> Tensor:
    """Apply an activation to a tensor that is the caller's own, in place where torch can."""
    if act is None:
        return y
    name, numbers, algorithm = act
    if name == "gelu":
        return F.gelu(y, approximate=algorithm)
    functions: dict[str, Any] = {
        "relu": torch.relu_,
        "hardtanh": F.hardtanh_,
        "swish": lambda t: F.silu(t, inplace=True),
        "sigmoid": torch.sigmoid_,
        "tanh": torch.tanh_,
        "hardswish": lambda t: F.hardswish(t, inplace=True),
        "hardsigmoid": lambda t: F.hardsigmoid(t, inplace=True),
        "leaky_relu": F.leaky_relu_,
    }
    result: Tensor = functions[name](y, *numbers)
    return result


def contrast_norm(x: Tensor, band: Tensor, k: float, beta: float) -> Tensor:
    """Return x / (k + band · x²)^beta over the channels of ``x`` [B, C, H, W]; ``band`` [C, C]."""
    rows = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
    squares = rows.square()
    total = torch.addmm(rows.new_full((), k), squares, band)
    if not total.sum().isfinite():  # infinity times zero is no number, but the channels far from it are
        wild, near = ~squares.isfinite(), band.ne(0).to(band.dtype)
        total = torch.addmm(rows.new_full((), k), squares.masked_fill(wild, 0), band)
        for what, value in ((wild, math.inf), (squares.isnan(), math.nan)):
            total.masked_fill_(what.to(band.dtype) @ near > 0, value)
    if beta == 0.75:  # two roots are several times as fast as a power
        total = total.mul_(total.sqrt()).sqrt_()
    else:
        total = total.pow_(beta)
    out = torch.div(rows, total, out=total)
    return out.view(x.shape[0], x.shape[2], x.shape[3], x.shape[1]).permute(0, 3, 1, 2)
