"""How operations act on patches: which of them can be computed on the changed rectangle alone, and how.

A rule says where the outputs of an operation change (`Rule.spans`) and computes them there (`Rule.run`). A node without
a rule runs on full maps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_unflatten

from attribkit.engine.incremental import kernels
from attribkit.engine.incremental.graph import Graph, Node
from attribkit.engine.incremental.record import Ref
from attribkit.engine.incremental.spans import Spans, Window, shifted, union

if TYPE_CHECKING:
    from attribkit.engine.incremental.patches import Chunk


class Rule:
    """An operation on patches: element by element along rows and columns, unless a subclass says otherwise."""

    def __init__(self, node: Node, function: Callable[..., Tensor]) -> None:
        self.node = node
        self.function = function
        self.inputs = node.inputs

    def spans(self, axis: int, spans: list[Spans]) -> Spans:
        """Return where the output changes along one axis (0: rows, 1: columns)."""
        return union(spans)

    def run(self, chunk: Chunk) -> Tensor:
        """Return the output on its rectangle."""
        output = self.node.outputs[0]
        return self.function(*(chunk.aligned(index, output) for index in self.inputs))

    def cost(self) -> float:
        """Return the work for one element of the output, in multiplications."""
        return 1.0


class WindowRule(Rule):
    """A convolution or a pool: outputs see a window of inputs, and padding beyond the map."""

    def __init__(
        self, node: Node, function: Callable[..., Tensor], windows: tuple[Window, Window], fill: float
    ) -> None:
        super().__init__(node, function)
        self.windows = windows
        self.pads = (windows[0].padding, windows[0].after, windows[1].padding, windows[1].after)
        self.fill = fill
        self.work = 1.0

    def spans(self, axis: int, spans: list[Spans]) -> Spans:
        return self.windows[axis].changed(spans[0])

    def run(self, chunk: Chunk) -> Tensor:
        return self.function(chunk.seen(self.inputs[0], self.node.outputs[0], self.windows, self.pads, self.fill))

    def cost(self) -> float:
        return self.work


class AveragePoolRule(WindowRule):
    """An average pool: a sum over the window, divided by how many elements count at that place."""

    def __init__(self, node: Node, windows: tuple[Window, Window], divisors: Tensor) -> None:
        super().__init__(node, self._sum, windows, 0.0)
        self.divisors = divisors  # [rows, columns] of the output
        self.uniform = float(divisors.flatten()[0]) if bool((divisors == divisors.flatten()[0]).all()) else None

    def _sum(self, x: Tensor) -> Tensor:
        size, stride = self.node.params["size"], self.node.params["stride"]
        return F.avg_pool2d(x, size, stride, 0, divisor_override=1)

    def run(self, chunk: Chunk) -> Tensor:
        total = super().run(chunk)
        if self.uniform is not None:
            return total.div_(self.uniform)
        return total.div_(chunk.of_map(self.divisors, self.node.outputs[0]))


class PadRule(Rule):
    """Padding around the map: the patch is the same, at another place."""

    def __init__(self, node: Node, before: tuple[int, int]) -> None:
        super().__init__(node, lambda x: x)
        self.before = before

    def spans(self, axis: int, spans: list[Spans]) -> Spans:
        return shifted(spans[0], self.before[axis])

    def run(self, chunk: Chunk) -> Tensor:
        return chunk.shifted(self.inputs[0], self.node.outputs[0], self.before)


def rule_for(graph: Graph, node: Node) -> tuple[Rule, tuple[int, int]] | None:
    """Return a node's rule and where rows and columns are in its output; None where it takes full maps."""
    output = node.outputs[0]
    if output is None or any(graph.values[i].axes is None for i in node.inputs):
        return None
    info = graph.values[output]
    source = graph.values[node.inputs[0]] if node.inputs else None
    if source is None or not info.rows:
        return None
    if node.op in ("conv", "max_pool", "avg_pool"):
        return _window(graph, node)
    if source.axes is None:
        return None
    if node.op == "affine":
        return (Rule(node, lambda x: affine(node, x)), source.axes) if source.axes == (2, 3) else None
    if node.op == "contrast_norm":
        return (Rule(node, lambda x: kernels.contrast_norm(x, **node.params)), source.axes)
    if node.op != "call":
        return None
    if torch.Tag.pointwise in node.function.tags:
        return _pointwise(graph, node)
    if node.name == "cat":
        return _cat(graph, node)
    if node.name == "constant_pad_nd":
        pads = node.arguments()["pad"]
        shape = source.shape
        if source.axes == (len(shape) - 2, len(shape) - 1) and all(p >= 0 for p in pads) and not any(pads[4:]):
            rows = pads[2] if len(pads) > 2 else 0
            return PadRule(node, (rows, pads[0])), source.axes
    return None


def affine(node: Node, x: Tensor) -> Tensor:
    """Scale and shift the channels of ``x``, then apply the activation."""
    y = torch.addcmul(node.params["shift"], x, node.params["scale"])
    return kernels.apply(node.params["act"], y)


def _window(graph: Graph, node: Node) -> tuple[Rule, tuple[int, int]] | None:
    source, output = graph.values[node.inputs[0]], graph.values[node.outputs[0] or 0]
    if source.axes != (2, 3):
        return None
    p = node.params
    if node.op == "conv":
        kernel = p["kernel"]
        size, stride, padding, dilation = kernel.weight.shape[2:], kernel.stride, kernel.padding, kernel.dilation
    else:
        size, stride, padding, dilation = p["size"], p["stride"], p["padding"], p["dilation"]
    rows, columns = (
        Window(size[i], stride[i], padding[i], dilation[i], source.shape[2 + i], output.shape[2 + i]) for i in (0, 1)
    )
    windows = (rows, columns)
    rule: WindowRule
    if node.op == "conv":
        rule = WindowRule(node, lambda x: p["kernel"](x, (0, 0)), windows, 0.0)
        rule.work = p["kernel"].weight[0].numel()
    elif node.op == "max_pool":
        rule = WindowRule(node, lambda x: F.max_pool2d(x, size, stride, 0, dilation), windows, -float("inf"))
    else:
        ones = torch.ones(1, 1, *source.shape[2:], dtype=source.dtype)
        shares = F.avg_pool2d(ones, size, stride, padding, p["ceil"], p["include"], p["divisor"])[0, 0]
        counts = F.avg_pool2d(ones, size, stride, padding, p["ceil"], p["include"], 1)[0, 0]
        if not bool((counts > 0).all()):
            return None  # a window of nothing but padding
        rule = AveragePoolRule(node, windows, (counts / shares).round())
    return rule, (2, 3)


def _pointwise(graph: Graph, node: Node) -> tuple[Rule, tuple[int, int]] | None:
    if len(node.outputs) != 1 or not node.single:
        return None
    shape = graph.values[node.outputs[0] or 0].shape
    axes: tuple[int, int] | None = None
    for index in node.inputs:
        info = graph.values[index]
        if info.axes is None or len(info.shape) != len(shape):
            return None
        if axes not in (None, info.axes) or any(info.shape[a] != shape[a] for a in info.axes):
            return None
        axes = info.axes
    if axes is None:
        return None
    for leaf in node.leaves:
        if isinstance(leaf, Tensor):  # a constant must not know of places
            sizes = [1] * (len(shape) - leaf.ndim) + list(leaf.shape)
            if len(sizes) != len(shape) or any(sizes[a] != 1 for a in axes) or sizes[0] != 1:
                return None
    return Rule(node, _caller(node)), axes


def _caller(node: Node) -> Callable[..., Any]:
    """Return the call as a function of its inputs."""
    places = {index: place for place, index in enumerate(node.inputs)}

    def call(*inputs: Tensor) -> Any:
        leaves = [inputs[places[leaf.index]] if isinstance(leaf, Ref) else leaf for leaf in node.leaves]
        args, kwargs = tree_unflatten(leaves, node.spec)
        return node.function(*args, **kwargs)

    return call


def _cat(graph: Graph, node: Node) -> tuple[Rule, tuple[int, int]] | None:
    axes = graph.values[node.inputs[0]].axes
    shape = graph.values[node.outputs[0] or 0].shape
    arguments = node.arguments()
    if axes is None or any(graph.values[i].axes != axes for i in node.inputs):
        return None
    dim = arguments["dim"] % len(shape)
    if dim == 0 or dim in axes or not all(isinstance(t, Ref) for t in arguments["tensors"]):
        return None
    return Rule(node, _caller(node)), axes
