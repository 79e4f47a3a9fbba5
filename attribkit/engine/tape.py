"""The way back as a list of steps, read off autograd's graph, so that it can be gone on rectangles.

Autograd's graph is the record of what really happened: in-place operations, branches and operations met twice are in
it as they are. `read` knows what each node of a convolutional network saved; where it meets one it does not know, it
says so, and the caller lets autograd go the way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge

from attribkit.engine import crops
from attribkit.engine.crops import Rule, Size
from attribkit.engine.inverse import SiteCall
from attribkit.engine.layers import GatedRectify, PassThrough, Rectify, Unpool
from attribkit.engine.patches import Patch


class Unknown(Exception):
    """The graph holds an operation that cannot be gone back on rectangles."""


@dataclass
class _Step:
    """One node on the way: its rule, and for each input that the signal goes to the step behind it."""

    rule: Rule
    inputs: tuple[int, ...]
    sizes: tuple[Size, ...]


@dataclass
class Tape:
    """The way from a layer's output back to the model's input.

    Attributes
    ----------
    steps : list
        In the order of the way back; inputs are numbers of steps, the last number is the model's input.
    """

    steps: list[_Step]

    def back(self, patch: Patch) -> tuple[Patch | None, int]:
        """Carry a patch at the layer's output back to the model's input.

        Returns
        -------
        patch : Patch or None
            None where no signal arrives.
        largest : int
            The most elements that a patch had on the way.
        """
        waiting: dict[int, Patch] = {0: patch}
        largest = patch.values.numel()
        for number, step in enumerate(self.steps):
            here = waiting.pop(number, None)
            if here is None:
                continue
            for place, found in zip(step.inputs, step.rule(here, step.sizes), strict=True):
                largest = max(largest, found.values.numel())
                known = waiting.get(place)
                waiting[place] = found if known is None else known.plus(found)
        return waiting.get(len(self.steps)), largest


def read(origin: Tensor, x: Tensor) -> Tape:
    """Read the way from ``origin`` [N, C, H, W] back to the leaf ``x``.

    Parameters
    ----------
    origin, x
        Both in autograd's graph.

    Raises
    ------
    Unknown
        There is an operation on the way that cannot be gone back on rectangles.
    """
    end = get_gradient_edge(x).node
    order = _order(origin.grad_fn, end)
    numbers = {node: number for number, node in enumerate([*order, end])}
    steps = []
    for node in order:
        edges = [(i, after) for i, (after, _) in enumerate(node.next_functions) if after in numbers]
        if any(_dtype(after) != _dtype(node) for _, after in edges):
            raise Unknown(f"{node.name()} of another dtype")
        sizes = tuple(_shape(after)[2:] for _, after in edges)
        rule = _rule(node, [i for i, _ in edges], [_shape(after) for _, after in edges])
        steps.append(_Step(rule, tuple(numbers[after] for _, after in edges), sizes))  # type: ignore[arg-type]
    return Tape(steps)


def _order(start: Node | None, end: Node) -> list[Node]:
    """Return the nodes from ``start`` to ``end``, each after all that lead to it; ``end`` itself left out."""
    found: list[Node] = []
    leads: dict[Node | None, bool] = {end: True, None: False}
    stack: list[tuple[Node | None, bool]] = [(start, False)]
    while stack:
        node, done = stack.pop()
        if node is None or (node in leads and not done):
            continue
        if done:
            leads[node] = any(leads.get(after, False) for after, _ in node.next_functions)
            if leads[node]:
                found.append(node)
        else:
            leads[node] = False
            stack.append((node, True))
            stack.extend((after, False) for after, _ in node.next_functions)
    return found[::-1]


def _shape(node: Node) -> tuple[int, ...]:
    metadata: Any = node._input_metadata
    if len(metadata) != 1 or len(metadata[0].shape) != 4:
        raise Unknown(node.name())
    return tuple(metadata[0].shape)


def _dtype(node: Node) -> torch.dtype:
    metadata: Any = node._input_metadata
    return metadata[0].dtype  # type: ignore[no-any-return]


# -- what each node says of its operation ------------------------------------------------------------------------------


def _rule(node: Any, places: list[int], shapes: list[tuple[int, ...]]) -> Rule:
    """Return the rule of a node, whose signal goes to the inputs at ``places``."""
    call = getattr(node, "call", None)
    if isinstance(call, SiteCall):
        return _rule_of_site(call, node, places, shapes)
    known = _NODES.get(node.name())
    if known is None:
        raise Unknown(node.name())
    if not known.many and places != [0]:
        raise Unknown(f"{node.name()} with a computed parameter")
    return known.rule(node, shapes, _shape(node))


def _rule_of_site(call: SiteCall, node: Any, places: list[int], shapes: list[tuple[int, ...]]) -> Rule:
    """Return the rule of a site with one of the engine's own inverse layers."""
    shape = _shape(node)
    layer = type(call.layer)
    if len(places) != 1 or len(call.input_shapes) != 1 or call._extras:
        raise Unknown(call.name)
    if layer is Unpool and call.switches is not None:
        return crops.unpool(call.switches, _windows_of_pool(call.params))
    if shapes[0] != shape:
        raise Unknown(call.name)
    if layer is PassThrough:
        return crops.identity
    if layer is Rectify:
        return crops.rectified(crops.identity)
    if layer is GatedRectify and call.kind == "rectifier":
        return crops.rectified(crops.elementwise(lambda: _plain(call, node)))
    raise Unknown(call.name)


@contextmanager
def _kept_as_it_was(node: Any) -> Iterator[None]:
    """Say it where torch refuses to hand out what a node saved: the model has written over it since."""
    try:
        yield
    except RuntimeError as error:
        raise Unknown(f"{node.name()}, whose operation's values were written over") from error


def _saved(node: Any, name: str) -> Any:
    """Return what a node saved of its operation, a tensor or None."""
    with _kept_as_it_was(node):
        return getattr(node, f"_saved_{name}")


def _plain(call: SiteCall, node: Any) -> Tensor:
    with _kept_as_it_was(node):
        return call.plain(_ones(node))  # type: ignore[return-value]


def _ones(node: Any) -> Tensor:
    metadata = node._input_metadata[0]
    return torch.ones(metadata.shape, dtype=metadata.dtype, device=metadata.device)


def _windows_of_pool(params: dict[str, Any]) -> crops.Windows:
    if "kernel_size" not in params:
        raise Unknown("a pool whose windows differ")
    kernel = params["kernel_size"]
    return crops.windows(kernel, params["stride"] or kernel, params["padding"], params["dilation"])


def _convolution(node: Any, shapes: list[tuple[int, ...]], shape: tuple[int, ...]) -> Rule:
    if node._saved_transposed:
        raise Unknown("transposed convolution")
    settings = (node._saved_stride, node._saved_padding, node._saved_dilation)
    weight = _saved(node, "weight").detach()
    return crops.convolution(weight, crops.windows(tuple(weight.shape[-2:]), *settings), node._saved_groups)


def _batch_norm(node: Any, shapes: list[tuple[int, ...]], shape: tuple[int, ...]) -> Rule:
    if node._saved_training or _saved(node, "running_var") is None:
        raise Unknown("batch norm with the batch's statistics")
    scale = (_saved(node, "running_var") + node._saved_eps).rsqrt()
    weight = _saved(node, "weight")
    return crops.scaled(scale if weight is None else scale * weight.detach())


def _relu(node: Any, shapes: list[tuple[int, ...]], shape: tuple[int, ...]) -> Rule:
    return crops.relu(lambda: _saved(node, "result").detach())


def _elementwise(node: Any, shapes: list[tuple[int, ...]], shape: tuple[int, ...]) -> Rule:
    def derivative() -> Tensor:
        with torch.no_grad(), _kept_as_it_was(node):
            found: Any = node(_ones(node))
        return found if isinstance(found, Tensor) else found[0]

    return crops.elementwise(derivative)


def _max_pool(node: Any, shapes: list[tuple[int, ...]], shape: tuple[int, ...]) -> Rule:
    kernel = node._saved_kernel_size
    settings = (node._saved_stride or kernel, node._saved_padding, node._saved_dilation)
    return crops.unpool(_saved(node, "result1"), crops.windows(kernel, *settings))


def _avg_pool(node: Any, shapes: list[tuple[int, ...]], shape: tuple[int, ...]) -> Rule:
    padding = tuple(node._saved_padding)
    alike = node._saved_count_include_pad or not any(padding)
    if node._saved_ceil_mode or node._saved_divisor_override is not None or not alike:
        raise Unknown("an average pool whose windows count differently")
    kernel = node._saved_kernel_size
    return crops.average(crops.windows(kernel, node._saved_stride or kernel, padding, 1))


def _sum(node: Any, shapes: list[tuple[int, ...]], shape: tuple[int, ...]) -> Rule:
    if any(other != shape for other in shapes):
        raise Unknown("a sum of different shapes")
    if len(shapes) == 2:
        return crops.summed([1, node._saved_alpha])
    if node._saved_alpha != 1:  # which of the two operands the signal goes to is not told here
        raise Unknown("a weighted sum with a constant")
    return crops.summed([1])


def _concatenation(node: Any, shapes: list[tuple[int, ...]], shape: tuple[int, ...]) -> Rule:
    dim = _signed(node._saved_dim)
    if dim % 4 != 1 or len(shapes) != len(node.next_functions):
        raise Unknown("a concatenation of rows, columns or samples, or with a constant")
    return crops.joined([other[1] for other in shapes])


def _padding(node: Any, shapes: list[tuple[int, ...]], shape: tuple[int, ...]) -> Rule:
    pad = [*map(_signed, node._saved_pad), 0, 0, 0, 0]
    if any(pad[4:]):
        raise Unknown("padding of channels or samples")
    return crops.padded((pad[2], pad[0]))


def _signed(saved: int) -> int:
    """Return an integer that a node saved: torch shows negative ones as what is left of 2^64."""
    return saved - (1 << 64) if saved >= 1 << 63 else saved


def _identity(node: Any, shapes: list[tuple[int, ...]], shape: tuple[int, ...]) -> Rule:
    return crops.identity


@dataclass(frozen=True)
class _Known:
    rule: Callable[[Any, list[tuple[int, ...]], tuple[int, ...]], Rule]
    many: bool = False


_ELEMENTWISE = "LeakyRelu Hardtanh Elu Gelu Silu Mish Hardswish Hardsigmoid Softplus Sigmoid Tanh PreluKernel"

_NODES: dict[str, _Known] = {
    "ConvolutionBackward0": _Known(_convolution),
    "NativeBatchNormBackward0": _Known(_batch_norm),
    "ReluBackward0": _Known(_relu),
    **{f"{name}Backward{form}": _Known(_elementwise) for name in _ELEMENTWISE.split() for form in (0, 1)},
    "MaxPool2DWithIndicesBackward0": _Known(_max_pool),
    "AvgPool2DBackward0": _Known(_avg_pool),
    "AddBackward0": _Known(_sum, many=True),
    "CatBackward0": _Known(_concatenation, many=True),
    "ConstantPadNdBackward0": _Known(_padding),
    "CloneBackward0": _Known(_identity),
    "AliasBackward0": _Known(_identity),
}
