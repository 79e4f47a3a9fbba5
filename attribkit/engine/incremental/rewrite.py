"""Rewriting a program into fewer and faster operations: batch norms folded, activations fused, pools recognised.

The model's tensors are only read; what is folded is copied.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from attribkit.engine.incremental.graph import Graph, Node
from attribkit.engine.incremental.kernels import Convolution, Linear, activation
from attribkit.engine.incremental.record import Ref

_BATCH_NORMS = frozenset(
    {"native_batch_norm", "cudnn_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training",
     "_batch_norm_with_update", "miopen_batch_norm"}
)  # fmt: skip
#: Activations by which oneDNN makes numbers of what is none, or 0 of what is very small.
_LOSSY = frozenset({"relu", "hardtanh", "hardsigmoid", "sigmoid"})
#: Operations that make finite numbers of finite ones, and nothing much of very small differences.
_TAME = frozenset(
    {"add", "sub", "rsub", "mul", "neg", "abs", "addmm", "mm", "bmm", "baddbmm", "matmul", "convolution", "mean", "sum",
     "cat", "stack", "relu", "relu6", "hardtanh", "hardsigmoid", "hardswish", "sigmoid", "tanh", "silu", "gelu", "mish",
     "leaky_relu", "elu", "softplus", "threshold", "_prelu_kernel", "_softmax", "clamp", "clamp_min", "clamp_max",
     "maximum", "minimum", "amax", "amin", "max", "min", "argmax", "max_pool2d_with_indices", "avg_pool2d",
     "_adaptive_avg_pool2d", "adaptive_max_pool2d", "upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d",
     "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "constant_pad_nd", "reflection_pad2d", "replication_pad2d",
     "roll", "flip", "expand", "slice", "select", "split", "split_with_sizes", "chunk", "unbind", "narrow", "index",
     "index_select", "gather", "as_strided", "_reshape_alias", "reshape", "flatten", "clone", "alias", "detach",
     "contiguous", "_to_copy", "lift_fresh", "_scaled_dot_product_flash_attention_for_cpu"}
)  # fmt: skip
#: Operations that leave every element as it is.
_SHAPES = frozenset({"view", "_unsafe_view", "unsqueeze", "squeeze", "permute", "transpose", "t"})
_COPIES = frozenset({"clone", "alias", "detach", "lift_fresh", "contiguous"})


def rewrite(graph: Graph) -> None:
    """Rewrite a program in place."""
    _drop_copies(graph)
    for node in graph.nodes:
        _recognise(graph, node)
    _contrast_norms(graph)
    _fold(graph)
    graph.prune()


def _drop_copies(graph: Graph) -> None:
    names: dict[int, int] = {}
    kept = []
    for node in graph.nodes:
        node.inputs = [names.get(i, i) for i in node.inputs]
        node.leaves = [Ref(names.get(x.index, x.index)) if isinstance(x, Ref) else x for x in node.leaves]
        if _is_copy(graph, node) and isinstance(node.leaves[0], Ref) and node.outputs[0] is not None:
            names[node.outputs[0]] = node.leaves[0].index
        else:
            kept.append(node)
    graph.nodes = kept
    graph.returns = [Ref(names.get(x.index, x.index)) if isinstance(x, Ref) else x for x in graph.returns]


def _is_copy(graph: Graph, node: Node) -> bool:
    output = node.outputs[0]
    if output is None or len(node.outputs) != 1 or not node.inputs:
        return False
    a, b = graph.values[node.inputs[0]], graph.values[output]
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if node.name in _COPIES or node.name == "_adaptive_avg_pool2d":
        return True
    if node.name == "as_strided":  # a change of the strides of dimensions of one element
        sides = zip(node.arguments()["stride"], a.stride, a.shape, strict=True)
        return (
            a.rows
            and b.rows
            and all(size == 1 or new == old for new, old, size in sides)
            and not node.arguments()["storage_offset"]
        )
    return False


def _recognise(graph: Graph, node: Node) -> None:
    """Give a call that is one of the operations known the form they have here."""
    if node.op != "call":
        return
    if node.name in ("addmm", "mm"):
        _linear(graph, node)
        return
    if not isinstance(node.leaves[0], Ref):
        return
    source, output = node.leaves[0].index, node.outputs[0]
    if output is None or not graph.values[source].rows or len(node.inputs) != 1:
        return
    flat = len(graph.values[source].shape) == 4
    others = {i for i in node.outputs[1:] if i is not None and i in graph.values}
    if others and (others & set(graph.results()) or any(others & set(other.inputs) for other in graph.nodes)):
        return
    name = node.name
    if name == "convolution" and flat:
        a = node.arguments()
        if not a["transposed"] and isinstance(a["weight"], Tensor):
            kernel = Convolution(
                a["weight"], a["bias"], _two(a["stride"]), _two(a["padding"]), _two(a["dilation"]), a["groups"]
            )
            _become(node, "conv", kernel=kernel)
    elif name == "max_pool2d_with_indices" and flat:
        a = node.arguments()
        size = _two(a["kernel_size"])
        _become(node, "max_pool", size=size, stride=_two(a["stride"] or size), padding=_two(a["padding"]),
                dilation=_two(a["dilation"]), ceil=a["ceil_mode"])  # fmt: skip
    elif name == "avg_pool2d" and flat:
        a = node.arguments()
        size, divisor = _two(a["kernel_size"]), a["divisor_override"]
        _become(node, "avg_pool", size=size, stride=_two(a["stride"] or size), padding=_two(a["padding"]),
                dilation=(1, 1), ceil=a["ceil_mode"], include=a["count_include_pad"], divisor=divisor)  # fmt: skip
    elif name in _BATCH_NORMS:
        a = node.arguments()
        mean, var = a["running_mean"], a["running_var"]
        if not a.get("training", False) and isinstance(mean, Tensor) and isinstance(var, Tensor):
            eps = a["eps"] if "eps" in a else a["epsilon"]
            scale = (var.double() + eps).rsqrt() * (1 if a["weight"] is None else a["weight"].double())
            shift = -mean.double() * scale + (0 if a["bias"] is None else a["bias"].double())
            dtype = graph.values[output].dtype
            view = (1, -1, *[1] * (len(graph.values[source].shape) - 2))
            _become(node, "affine", scale=scale.to(dtype).view(view), shift=shift.to(dtype).view(view), act=None)


def _linear(graph: Graph, node: Node) -> None:
    """Recognise a product with the weights of a linear layer, as they lie there, and its bias."""
    a = node.arguments()
    x, weight, bias = a.get("mat1", a["self"]), a["mat2"], a["self"] if node.name == "addmm" else None
    if not isinstance(x, Ref) or not isinstance(weight, Tensor) or not weight.t().is_contiguous():
        return
    if bias is not None and (not isinstance(bias, Tensor) or bias.ndim != 1 or len(bias) != weight.shape[1]):
        return
    if a.get("alpha", 1) == a.get("beta", 1) == 1 and graph.values[x.index].dtype == weight.dtype:
        _become(node, "linear", kernel=Linear(weight.t(), bias))


def _become(node: Node, op: str, **params: Any) -> None:
    node.op, node.params = op, params
    node.outputs = node.outputs[:1]
    node.leaves, node.function, node.spec = [], None, None


def _two(value: Any) -> tuple[int, int]:
    return (value[0], value[-1]) if isinstance(value, (list, tuple)) else (value, value)


def _is_tame(node: Node) -> bool:
    """Tell whether a call makes finite numbers of finite ones."""
    if node.op == "affine":
        return bool(node.params["scale"].isfinite().all() and node.params["shift"].isfinite().all())
    if node.op != "call":
        return True
    name = node.name
    if name in ("native_layer_norm", "native_group_norm"):
        tame = node.arguments()["eps"] > 0
    elif name in ("div", "pow", "fmod", "remainder"):
        by = node.leaves[1]
        tame = isinstance(by, (int, float)) and by != 0 and (name != "pow" or by in (1, 2, 3, 4))
    else:
        tame = name in _TAME or name in _SHAPES or name in _BATCH_NORMS
    return tame and all(map(_is_finite, node.leaves))


def _is_finite(leaf: Any) -> bool:
    if isinstance(leaf, Tensor) and leaf.is_floating_point():
        return bool(leaf.isfinite().all())
    return not isinstance(leaf, float) or math.isfinite(leaf)


def _alone(node: Node, consumers: dict[int, list[Node]], results: set[int]) -> bool:
    """Tell whether nothing but this node takes its first input."""
    return bool(node.inputs) and len(consumers[node.inputs[0]]) == 1 and node.inputs[0] not in results


def _fold(graph: Graph) -> None:
    """Fold batch norms and activations into the convolution or batch norm whose only use they are."""
    hidden = frozenset() if all(map(_is_tame, graph.nodes)) else _LOSSY
    consumers, results = graph.consumers(), set(graph.results())
    makers = {output: node for node in graph.nodes for output in node.outputs if output is not None}
    gone: set[int] = set()
    for node in graph.nodes:
        if not node.inputs:
            continue
        last = maker = makers.get(node.inputs[0])
        alone = _alone(node, consumers, results)
        if node.op == "call":  # what works element by element may come before a change of the shape as well
            while maker is not None and alone and maker.op == "call" and maker.name in _SHAPES:
                alone = _alone(maker, consumers, results)
                maker = makers.get(maker.inputs[0])
        if maker is None or last is None or not alone or maker.op not in ("conv", "linear", "affine"):
            continue
        if maker.op == "affine" and node.op == "affine":
            continue
        if node.op == "affine" and maker.op == "linear":
            continue
        if node.op == "affine" and maker.params["kernel"].act is None:
            maker.params["kernel"].fold(node.params["scale"], node.params["shift"])
        elif node.op == "call" and len(node.inputs) == 1:
            act = activation(node)
            held = maker.params.get("kernel")
            if act is None or (held.act if held is not None else maker.params["act"]) is not None:
                continue
            if held is not None and act[0] in hidden:
                continue
            if held is not None:
                held.act = act
            else:
                maker.params["act"] = act
        else:
            continue
        last.outputs = list(node.outputs)
        makers[node.outputs[0] if node.outputs[0] is not None else -1] = last
        gone.add(id(node))
    graph.nodes = [node for node in graph.nodes if id(node) not in gone]


def _contrast_norms(graph: Graph) -> None:
    """Recognise F.local_response_norm: x / (k + alpha * mean of squares over neighbouring channels) ** beta."""
    consumers = graph.consumers()

    def only(index: int | None, name: str) -> Node | None:
        if index is None or len(consumers.get(index, [])) != 1 or consumers[index][0].name != name:
            return None
        return consumers[index][0]

    dropped: set[int] = set()
    for node in graph.nodes:
        if node.name != "mul" or len(node.inputs) != 1 or node.leaves[:2] != [Ref(node.inputs[0])] * 2:
            continue
        info = graph.values[node.inputs[0]]
        if not info.rows or len(info.shape) != 4:
            continue
        chain, current = [node], node
        for name in ("view", "constant_pad_nd", "avg_pool3d", "squeeze", "view", "mul", "add", "pow", "div"):
            following = only(current.outputs[0], name)
            if following is None and name == "view":
                following = only(current.outputs[0], "unsqueeze")
            if following is None:
                break
            chain.append(following)
            current = following
        if (
            len(chain) != 10
            or chain[-1].inputs[0] != node.inputs[0]
            or chain[-1].leaves[1] != Ref(chain[-2].outputs[0] or 0)
        ):
            continue
        pool, padding = chain[3].arguments(), chain[2].arguments()
        channels = info.shape[1]
        size, pads = pool["kernel_size"][0], list(padding["pad"])
        scale, add = chain[6].leaves[1], chain[7].arguments()
        numbers = (scale, add["other"], chain[8].leaves[1])
        if (
            list(pool["kernel_size"]) != [size, 1, 1]
            or pads != [0, 0, 0, 0, size // 2, (size - 1) // 2]
            or padding["value"] != 0
            or list(pool["stride"]) not in ([1, 1, 1], [1])
            or any(pool["padding"])
            or pool["divisor_override"]
            or add["alpha"] != 1
            or not all(isinstance(number, (int, float)) for number in numbers)
            or graph.values[chain[5].outputs[0] or 0].shape != info.shape
        ):
            continue
        places = torch.arange(channels)
        offset = places[:, None] - places[None]  # a channel's window starts size // 2 before it
        band = ((offset >= -(size // 2)) & (offset <= (size - 1) // 2)).to(info.dtype)
        last = chain[-1]
        last.inputs = [node.inputs[0]]
        _become(last, "contrast_norm", band=band * (scale / size), k=numbers[1], beta=numbers[2])
        dropped.update(id(n) for n in chain[:-1])
    graph.nodes = [node for node in graph.nodes if id(node) not in dropped]
