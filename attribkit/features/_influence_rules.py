"""What each function does to the boxes of pixels that its operands can depend on: see `_influence`.

A rule works on one bound of the boxes at a time; around boxes is the maximum of each bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_flatten

from attribkit.engine.ops import Operation

NOTHING = -math.inf


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_POINTWISE_KINDS = frozenset({"rectifier", "gate", "sum", "product", "dropout", "nonlinear"})
_POINTWISE = _words(
    "real imag clone contiguous detach to float double half bfloat16 type type_as neg negative positive sigmoid tanh "
    "sign round floor ceil trunc lerp addcmul addcdiv masked_fill nan_to_num logical_and eq ne lt gt le ge hardtanh "
    "identity rsub floor_divide remainder alias requires_grad_ truediv"
)
# Moves: elements go elsewhere, are left out or repeated, and nothing else. The reach goes through the same function.
_MOVES = _words(
    "view reshape view_as reshape_as flatten unflatten permute transpose swapaxes swapdims movedim moveaxis t mT "
    "T H mH squeeze unsqueeze chunk split split_with_sizes tensor_split unbind narrow select getitem expand "
    "expand_as repeat repeat_interleave tile roll flip rot90 cat concat concatenate stack hstack vstack "
    "index_select pixel_shuffle pixel_unshuffle channel_shuffle diagonal ravel broadcast_to"
)
_REDUCTIONS = frozenset(["mean", "sum", "amax", "amin", "prod", "logsumexp", "var", "std", "norm", "nansum"])
_OVER_DIM = frozenset(["softmax", "log_softmax", "softmin", "normalize", "cumsum", "cumprod"])
NEW = _words("zeros_like ones_like full_like rand_like randn_like empty_like new_zeros new_ones size dim")


def rule_for(name: str, operation: Operation | None) -> Callable[..., list[Tensor]] | None:
    """Return what takes a call with bounds for tensors, and its results, to the results' bounds; None: not known."""
    kind = operation.kind if operation is not None else None
    if name in _MOVES:
        return lambda call, results: tensors_of(_move(name)(*call[0], **call[1]))
    if name in _OVER_DIM:
        return _over_dim(name)
    if name in _REDUCTIONS:
        return _reduced
    named = _NAMED.get(name) or _NAMED.get(kind or "")
    if named is not None and operation is not None:
        return lambda call, results: [named(operation.bind(*call), results[0], operation.name)]
    if name in _POINTWISE or kind in _POINTWISE_KINDS or kind == "hardtanh":
        return _pointwise
    return None


def carries(tensor: Tensor) -> bool:
    """Tell whether a tensor can depend on the input in a way that counts: real or complex, no whole numbers."""
    return tensor.is_floating_point() or tensor.is_complex()


def tensors_of(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, Tensor)]


def _move(name: str) -> Any:
    if name == "getitem":
        return Tensor.__getitem__
    if name == "view":  # bounds may be expanded where the tensor is not
        return Tensor.reshape
    if name in ("mT", "T", "H", "mH"):
        return lambda tensor: getattr(tensor, name)
    return next(f for space in (Tensor, torch, F) if (f := getattr(space, name, None)) is not None)


def _pointwise(call: Any, results: list[Tensor]) -> list[Tensor]:
    bounds = [t for t in tensors_of(call) if carries(t)]
    around = bounds[0]
    for bound in bounds[1:]:
        around = torch.maximum(around, bound)
    return [around] * len(results)


def _dims(args: Any, kwargs: Any, name: str = "dim") -> Any:
    dims = kwargs.get(name, kwargs.get("axis", args[1] if len(args) > 1 else None))
    return list(dims) if isinstance(dims, (tuple, list)) else dims


def _reduced(call: Any, results: list[Tensor]) -> list[Tensor]:
    args, kwargs = call
    dims = _dims(args, kwargs)
    dims = list(range(args[0].ndim)) if dims is None else dims
    kept = args[0].amax(dims, keepdim=True)
    return [kept if kept.ndim == t.ndim else kept.squeeze(dims) for t in results]


def _over_dim(name: str) -> Callable[..., list[Tensor]]:
    place = {"normalize": 2}.get(name, 1)

    def rule(call: Any, results: list[Tensor]) -> list[Tensor]:
        args, kwargs = call
        dim = kwargs.get("dim", args[place] if len(args) > place else 1 if name == "normalize" else None)
        if not isinstance(dim, int):
            raise ValueError("no dimension")
        return [args[0].amax(dim, keepdim=True).expand(args[0].shape)]

    return rule


def _conv(bound: dict[str, Any], result: Tensor, name: str) -> Tensor:
    if "transpose" in name:
        raise NotImplementedError
    x: Tensor = bound["input"]
    weight: Tensor = bound["weight"]
    dims = weight.ndim - 2
    kernel = tuple(weight.shape[2:])
    stride, dilation = _tuple(bound["stride"], dims), _tuple(bound["dilation"], dims)
    padding = bound["padding"]
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        pads = [(t // 2, t - t // 2) for t in total]
    else:
        pads = [(p, p) for p in (_tuple(padding, dims) if padding != "valid" else (0,) * dims)]
    groups = int(bound["groups"])
    x = x.reshape(len(x), groups, -1, *x.shape[2:]).amax(2)
    x = F.pad(x, [p for pair in reversed(pads) for p in pair], value=NOTHING)
    x = getattr(F, f"max_pool{dims}d")(x, kernel, stride, 0, dilation)
    return x.repeat_interleave(result.shape[1] // groups, 1)


def _tuple(value: Any, dims: int) -> tuple[int, ...]:
    found = (value,) * dims if isinstance(value, int) else tuple(value)
    return found * dims if len(found) == 1 else found


def _max_pool(bound: dict[str, Any], result: Tensor, name: str) -> Tensor:
    if "input" not in bound:
        raise NotImplementedError
    dims = int(name.split("_with")[0][-2])
    if "adaptive" in name:
        found: Tensor = getattr(F, f"adaptive_max_pool{dims}d")(bound["input"], bound["output_size"])
        return found
    stride = bound["stride"] or bound["kernel_size"]
    pool = getattr(F, f"max_pool{dims}d")
    kernel = bound["kernel_size"]
    x: Tensor = pool(bound["input"], kernel, stride, bound["padding"], bound.get("dilation", 1), bound["ceil_mode"])
    return x


def _linear(bound: dict[str, Any], result: Tensor, name: str) -> Tensor:
    return bound["input"].amax(-1, keepdim=True).expand(result.shape)  # type: ignore[no-any-return]


def _batch_norm(bound: dict[str, Any], result: Tensor, name: str) -> Tensor:
    x: Tensor = bound["input"]
    if not bound["training"] and bound["running_mean"] is not None:
        return x
    dims = [d for d in range(x.ndim) if d != 1]
    return x.amax(dims, keepdim=True).expand(x.shape)


def _norm(bound: dict[str, Any], result: Tensor, name: str) -> Tensor:
    x: Tensor = bound["input"]
    if name in ("layer_norm", "rms_norm"):
        shape = bound["normalized_shape"]
        count = 1 if isinstance(shape, int) else len(shape)
        return x.amax(list(range(x.ndim - count, x.ndim)), keepdim=True).expand(x.shape)
    if name == "group_norm":
        grouped = x.reshape(len(x), int(bound["num_groups"]), -1)
        return grouped.amax(2, keepdim=True).expand(grouped.shape).reshape(x.shape)
    if name == "instance_norm" and bound["use_input_stats"]:
        return x.amax(list(range(2, x.ndim)), keepdim=True).expand(x.shape)
    if name == "instance_norm":
        return x
    raise NotImplementedError


def _contrast_norm(bound: dict[str, Any], result: Tensor, name: str) -> Tensor:
    x, size = bound["input"], int(bound["size"])
    flat = F.pad(x.reshape(len(x), 1, x.shape[1], -1), (0, 0, size // 2, (size - 1) // 2), value=NOTHING)
    return F.max_pool2d(flat, (size, 1), 1).reshape(x.shape)


def _pad(bound: dict[str, Any], result: Tensor, name: str) -> Tensor:
    mode = bound.get("mode", "constant")
    if mode == "constant":
        return F.pad(bound["input"], list(bound["pad"]), value=NOTHING)
    # infinite values survive: these modes copy
    return F.pad(bound["input"], list(bound["pad"]), mode=mode)


def _interpolate(bound: dict[str, Any], result: Tensor, name: str) -> Tensor:
    if bound.get("mode", "nearest") not in ("nearest", "nearest-exact"):
        raise NotImplementedError
    sizes = list(result.shape[2:])
    found: Tensor = F.interpolate(bound["input"], size=sizes, mode=bound.get("mode", "nearest"))
    return found


def _matmul(bound: dict[str, Any], result: Tensor, name: str) -> Tensor:
    a, b = list(bound.values())[:2]
    if a.ndim < 2 or b.ndim < 2:
        raise NotImplementedError
    return torch.maximum(a.amax(-1, keepdim=True), b.amax(-2, keepdim=True)).expand(result.shape)


def _attention(bound: dict[str, Any], result: Tensor, name: str) -> Tensor:
    if "key" not in bound or name.startswith("multi_head"):
        raise NotImplementedError
    query, key, value = bound["query"], bound["key"], bound["value"]
    # every token is compared with all of this token's query; masks are ignored
    keys = torch.maximum(key.amax((-2, -1), keepdim=True), value.amax(-2, keepdim=True))
    return torch.maximum(query.amax(-1, keepdim=True), keys).expand(result.shape)


_NAMED: dict[str, Callable[[dict[str, Any], Tensor, str], Tensor]] = {
    "conv": _conv,
    "linear": _linear,
    "max_pool": _max_pool,
    "avg_pool": _max_pool,
    "batch_norm": _batch_norm,
    "norm": _norm,
    "contrast_norm": _contrast_norm,
    "pad": _pad,
    "interpolate": _interpolate,
    "matmul": _matmul,
    "attention": _attention,
}
