"""Reference values of gradient, guided backprop and deconvnet for any torch model on the CPU, in its own float dtype.

It shares nothing with the engine under test, neither code nor technique. The engine works from outside, with module
hooks and an interception of calls. The oracle lets the model run untouched and works afterwards on the graph that
autograd itself recorded: a rectifier is a *node* of that graph (``ReluBackward0``, ``SiluBackward0``, ...), whichever
of the module, the function or the tensor method made it, in place or not, and the rule is an edit of the gradient that
enters or leaves that node. Derivatives, accumulation over branches and order are autograd's own. So a call that the
engine's interception overlooks, counts twice or restores badly shows as a difference here.

Two things have no node of their own, because they are written from several primitives: timm's activation classes
(``Swish``, ``HardSigmoid``, ...) and local response normalisation. While the model runs, these are replaced by one
autograd function each, which becomes one node whose backward is written out below.

What the oracle cannot see it refuses: an in-place operation on a view becomes a ``CopySlices`` node that hides the
operation inside. Where that may be a rectifier, the model raises `NotImplementedError`; other operations (sums into a
slice, assignments) are their ordinary derivative, hidden or not.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import activations, activations_me
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

METHODS = ("gradient", "guided_backprop", "deconvnet")

# Autograd's names without "Backward" and the number behind it (0: not in place, 1: in place, for some operations).
RECTIFIERS = {
    "Relu",
    "Hardtanh",  # only from 0, see `_is_rectifier`: ReLU6 is a Hardtanh
    "LeakyRelu",
    "PreluKernel",
    "RreluWithNoise",
    "Elu",  # SELU too
    "Celu",
    "Gelu",
    "Silu",
    "Mish",
    "Hardswish",
    "Softplus",
}

IN_PLACE = {
    *("relu_", "hardtanh_", "leaky_relu_", "rrelu_with_noise_", "elu_", "celu_", "selu_", "gelu_", "silu_", "mish_"),
    "hardswish_",
}

# Classes written from primitives: one rectifier each, or one gate each (plain, with whatever rectifier they call).
COMPOSITES = {
    activations.Swish: "rectifier",
    activations.Mish: "rectifier",
    activations.HardSwish: "rectifier",
    activations.HardMish: "rectifier",
    activations.QuickGELU: "rectifier",
    activations_me.SwishMe: "rectifier",
    activations_me.MishMe: "rectifier",
    activations_me.HardSwishMe: "rectifier",
    activations_me.HardMishMe: "rectifier",
    activations.Sigmoid: "gate",
    activations.Tanh: "gate",
    activations.HardSigmoid: "gate",
    activations_me.HardSigmoidMe: "gate",
}


@dataclass(frozen=True)
class Place:
    """A unit: element ``channel``, ``position`` of what ``layer`` returned at its ``call``-th call."""

    layer: str
    channel: int
    position: Any = "max"  # "max", "all", (row, column) or, for NTC, a token index
    layout: str = "NCHW"
    call: int = 0


@dataclass(frozen=True)
class Reference:
    """What the oracle found."""

    values: Tensor
    scores: Tensor
    rectifiers: int  # in the part of the graph that leads to the target


def explain(model: nn.Module, inputs: Tensor, method: str, target: Any = None) -> Reference:
    """Return the reference for ``target``: None (arg-max), an int, a LongTensor [N], a callable or a `Place`."""
    if method not in METHODS:
        raise ValueError(method)
    if any(module.training for module in model.modules()):
        model = copy.deepcopy(model).eval()
    leaf = inputs.detach().clone().requires_grad_()
    place = target if isinstance(target, Place) else None
    hidden = _RectifiersOnViews()
    with torch.enable_grad(), _frozen(model), _composites_as_one_node(method), _watch(model, place) as seen, hidden:
        outputs = model(leaf.clone())  # a clone, so that a model may start with an in-place operation
    if place is not None:
        end, mask = seen[place.call], _mask(seen[place.call].detach(), place)
        scores = (end.detach() * mask).flatten(1).sum(1)
        seed = end.detach() * mask if method == "deconvnet" else mask
    elif callable(target):
        end = target(outputs)
        scores, seed = end.detach(), torch.ones_like(end)
    else:
        end = _logits(outputs)
        classes = end.argmax(1) if target is None else torch.as_tensor(target).expand(len(inputs))
        seed = F.one_hot(classes, end.shape[1]).to(end.dtype)
        scores = (end.detach() * seed).sum(1)
    rectifiers = _edit_graph(end.grad_fn, method, hidden.found)
    (values,) = torch.autograd.grad(end, leaf, seed)
    return Reference(values, scores, rectifiers)


@contextlib.contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Keep operations on parameters alone (a position bias's own network) out of the graph: no signal goes there."""
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in wanted:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)


class _RectifiersOnViews(TorchDispatchMode):
    """Notes the rectifiers that were applied in place to a view, as ATen's dispatcher gets them."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in IN_PLACE and args[0].requires_grad and args[0]._is_view():
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def _edit_graph(root: Any, method: str, hidden: list[str]) -> int:
    """Attach the method's rule to every rectifier node below ``root``; return how many there are."""

    def enter(grads: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(grad.clamp(min=0) for grad in grads)

    def leave(grads_in: tuple[Tensor | None, ...], grads_out: tuple[Tensor, ...]) -> tuple[Tensor | None, ...]:
        return (grads_out[0].clamp(min=0), *grads_in[1:])  # the rest are gradients of parameters (PReLU)

    count, seen, stack = 0, {root}, [root]
    while stack:
        node = stack.pop()
        if hidden and node.name().endswith("CopySlices"):
            raise NotImplementedError(f"{hidden[0]} in place on a view: autograd hides it in a node of another name")
        if isinstance(node, _OneNode._backward_cls):
            count += node.kind == "rectifier"  # its backward knows the rule
        elif _is_rectifier(node):
            count += 1
            if method != "gradient":
                node.register_prehook(enter)
            if method == "deconvnet":
                node.register_hook(leave)
        for below, _ in node.next_functions:
            if below is not None and below not in seen:
                seen.add(below)
                stack.append(below)
    return count


def _is_rectifier(node: Any) -> bool:
    operation = node.name().rstrip("0123456789").removesuffix("Backward")
    return operation in RECTIFIERS and not (operation == "Hardtanh" and node._saved_min_val != 0)


class _OneNode(torch.autograd.Function):
    """An elementwise function, or local response normalisation, as one node of the graph."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, function: Callable[[Tensor], Tensor], kind: str, method: str) -> Tensor:
        ctx.function, ctx.kind, ctx.method = function, kind, method
        ctx.save_for_backward(x.clone())
        return function(x.clone())

    @staticmethod
    def backward(ctx: Any, signal: Tensor) -> Any:
        if ctx.kind == "contrast_norm" and ctx.method == "deconvnet":
            return signal, None, None, None
        if ctx.kind == "rectifier" and ctx.method != "gradient":
            signal = signal.clamp(min=0)
        if ctx.kind == "rectifier" and ctx.method == "deconvnet":
            return signal, None, None, None
        with torch.enable_grad():
            x = ctx.saved_tensors[0].detach().requires_grad_()
            (signal,) = torch.autograd.grad(ctx.function(x.clone()), x, signal)
        return signal, None, None, None


@contextlib.contextmanager
def _composites_as_one_node(method: str) -> Iterator[None]:
    originals: list[tuple[Any, str, Any]] = []

    def replace(owner: Any, name: str, value: Any) -> None:
        originals.append((owner, name, getattr(owner, name)))
        setattr(owner, name, value)

    def as_one_node(original: Callable[..., Tensor], kind: str) -> Callable[..., Tensor]:
        def forward(self: nn.Module, x: Tensor) -> Tensor:
            result = _OneNode.apply(x, lambda value: original(self, value), kind, method)
            return x.copy_(result) if getattr(self, "inplace", False) else result

        return forward

    def local_response_norm(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return _OneNode.apply(x, lambda value: original_norm(value, *args, **kwargs), "contrast_norm", method)

    original_norm = F.local_response_norm
    try:
        for cls, kind in COMPOSITES.items():
            replace(cls, "forward", as_one_node(cls.forward, kind))
        replace(F, "local_response_norm", local_response_norm)
        yield
    finally:
        for owner, name, value in reversed(originals):
            setattr(owner, name, value)


@contextlib.contextmanager
def _watch(model: nn.Module, place: Place | None) -> Iterator[list[Tensor]]:
    """Record what each call of the place's layer returned, as it was at that moment."""
    seen: list[Tensor] = []
    if place is None:
        yield seen
        return
    wanted, original = model.get_submodule(place.layer), nn.Module.__call__

    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        output = original(self, *args, **kwargs)
        if self is wanted:
            seen.append(output.clone())  # a node of its own: an operation in place on `output` comes after it
        return output

    nn.Module.__call__ = call  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        nn.Module.__call__ = original  # type: ignore[method-assign]


def _mask(output: Tensor, place: Place) -> Tensor:
    """Return 1 at the place's element of each sample (at the whole map for "all"), 0 elsewhere."""
    channel_at = {"NCHW": 1, "NC": 1, "NTC": 2, "NHWC": 3}[place.layout]
    mask = torch.zeros_like(output)
    for sample, sample_mask in zip(output, mask, strict=True):
        feature_map = sample.select(channel_at - 1, place.channel)
        map_mask = sample_mask.select(channel_at - 1, place.channel)  # a view: writing to it writes to the mask
        if place.position == "all":
            map_mask.fill_(1)
        elif place.position == "max":
            values = feature_map.flatten().tolist()
            first = values.index(max(values))
            map_mask[torch.unravel_index(torch.tensor(first), feature_map.shape)] = 1
        else:
            map_mask[place.position] = 1
    return mask


def _logits(outputs: Any) -> Tensor:
    if isinstance(outputs, Tensor):
        return outputs
    if isinstance(outputs, (tuple, list)):
        return outputs[0]
    return outputs["logits"] if isinstance(outputs, dict) else outputs.logits
