"""Which pixels each element of each tensor can depend on, followed through one forward pass.

Beside every tensor that comes from the input runs its *reach*: for each element the bounding box of the pixels that it
can depend on. A function that moves elements moves their boxes; one that combines elements gives each result the box
around its operands' boxes. Weights count as different from zero, and a max pool's window as depending on all of its
elements, whatever the values. An operation that is not known gives all its results the box around everything it was
given, and is listed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

from attribkit.engine.ops import Operation, Vocabulary
from attribkit.engine.splice import function_name, is_in_place

#: Of each element −top, −left, bottom and right (exclusive), so that the box around boxes is the maximum of each.
Reach = tuple[Tensor, ...]

NOTHING = -math.inf


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_POINTWISE_KINDS = frozenset({"rectifier", "gate", "sum", "product", "dropout", "nonlinear"})
_POINTWISE = _words(
    "clone contiguous detach to float double half bfloat16 type type_as neg negative positive sigmoid tanh sign "
    "round floor ceil trunc lerp addcmul addcdiv masked_fill nan_to_num logical_and eq ne lt gt le ge hardtanh "
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
_NEW = _words("zeros_like ones_like full_like rand_like randn_like empty_like new_zeros new_ones size dim")


class Influence(TorchFunctionMode):
    """Follows the reach of every tensor while it is active.

    Parameters
    ----------
    image
        The model's input [1, C, H, W]: element (y, x) reaches pixel (y, x).
    vocabulary
        The operations known.
    constants
        Tensors that do not come from the input: the model's parameters and buffers.
    """

    def __init__(self, image: Tensor, vocabulary: Vocabulary, constants: list[Tensor]) -> None:
        super().__init__()
        self._functions = vocabulary.functions
        self._reach = WeakTensorKeyDictionary()
        self._constants = {id(tensor) for tensor in constants}
        self.unknown: dict[str, None] = {}
        height, width = image.shape[-2:]
        self.image = (int(height), int(width))
        rows = torch.arange(height, dtype=torch.float32, device=image.device)[:, None]
        columns = torch.arange(width, dtype=torch.float32, device=image.device)[None]
        parts = (-rows, -columns, rows + 1, columns + 1)
        self._reach[image] = tuple(part.expand(image.shape).contiguous() for part in parts)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = function_name(func).strip("_")
        operation = self._functions.get(func)
        changes = is_in_place(operation, func, args, kwargs)
        # read before: an operation in place has another reach afterwards, and some change a tensor's shape
        operands = self._operands(args, kwargs)
        output = func(*args, **kwargs)
        if not _tensors(output) and name != "setitem":
            return output
        self._follow(name, func, operation, args, kwargs, output, operands, changes)
        return output

    def of(self, tensor: Tensor) -> Reach | None:
        """Return a tensor's reach; None for one that does not come from the input."""
        found: Reach | None = self._reach.get(tensor)  # type: ignore[no-untyped-call]
        if found is None and id(tensor) not in self._constants and tensor.grad_fn is not None:
            # made where no function mode looks (a C++ extension, an autograd.Function)
            self.unknown.setdefault(type(tensor.grad_fn).__name__.removesuffix("Backward"))
            found = self._everything(tensor)
        return found

    def _everything(self, tensor: Tensor) -> Reach:
        height, width = self.image
        return tuple(torch.full(tensor.shape, v, device=tensor.device) for v in (0.0, 0.0, float(height), float(width)))

    def _operands(self, args: Any, kwargs: Any) -> dict[int, Reach]:
        return {id(t): r for t in _tensors((args, kwargs)) if t.is_floating_point() and (r := self.of(t)) is not None}

    def _follow(
        self,
        name: str,
        func: Any,
        operation: Operation | None,
        args: Any,
        kwargs: Any,
        output: Any,
        operands: dict[int, Reach],
        changes: bool,
    ) -> None:
        """Note the reach of what a function returned."""
        if name == "setitem":
            self._set_item(args, operands)
            return
        results = [t for t in _tensors(output) if t.is_floating_point()]
        if not operands or name in _NEW:
            for tensor in results:
                self._constants.add(id(tensor))
                self._reach[tensor] = tuple(torch.full((), NOTHING).expand(tensor.shape) for _ in range(4))
            return
        reaches: list[Reach] | None = None
        rule = self._rule(name, operation, args)
        if rule is not None:
            try:
                parts = [rule(self._arguments(args, kwargs, operands, i), results) for i in range(4)]
            except (RuntimeError, TypeError, ValueError, KeyError, IndexError, NotImplementedError):
                pass  # a form of the call that the rule does not know
            else:
                found = [
                    tuple(_fitted(part[i], tensor) for part in parts if i < len(part))
                    for i, tensor in enumerate(results)
                ]
                if all(len(reach) == 4 and all(p is not None for p in reach) for reach in found):
                    reaches = found  # type: ignore[assignment]
        if reaches is None:
            self.unknown.setdefault(name)
            hull = [torch.stack([reach[i].amax() for reach in operands.values() if reach[i].numel()]) for i in range(4)]
            reaches = [tuple(bound.amax().expand(t.shape) for bound in hull) for t in results]
        for tensor, reach in zip(results, reaches, strict=True):
            self._reach[tensor] = reach
            base = tensor._base
            if changes and base is not None and base.is_floating_point():
                around = [torch.maximum(b, r.amax()) for b, r in zip(self.of(base) or reach, reach, strict=True)]
                self._reach[base] = tuple(bound.expand(base.shape) for bound in around)

    def _set_item(self, args: Any, operands: dict[int, Reach]) -> None:
        target, index, value = args
        old = operands.get(id(target)) or tuple(
            torch.full(target.shape, NOTHING, device=target.device) for _ in range(4)
        )
        new = operands.get(id(value)) if isinstance(value, Tensor) else None
        changed = []
        for i, bound in enumerate(old):
            copy = bound.clone()
            copy[index] = new[i] if new is not None else NOTHING
            changed.append(copy)
        self._reach[target] = tuple(changed)

    def _arguments(self, args: Any, kwargs: Any, operands: dict[int, Reach], bound: int) -> tuple[Any, Any]:
        """Return a call's arguments with one bound of the reach in place of each tensor."""

        def replaced(value: Any) -> Any:
            if not isinstance(value, Tensor) or not value.is_floating_point():
                return value
            reach = operands.get(id(value))
            return reach[bound] if reach is not None else torch.full(value.shape, NOTHING, device=value.device)

        return tree_map(replaced, (args, kwargs))  # type: ignore[no-any-return]

    def _rule(self, name: str, operation: Operation | None, args: Any) -> Callable[..., list[Tensor]] | None:
        kind = operation.kind if operation is not None else None
        if name in _MOVES:
            return lambda call, results: _tensors(_move(name)(*call[0], **call[1]))
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


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, Tensor)]


def _fitted(part: Tensor, tensor: Tensor) -> Tensor | None:
    """Return a bound in the shape of its tensor; None where it does not fit."""
    if part.shape == tensor.shape:
        return part
    try:
        return part.expand(tensor.shape)
    except RuntimeError:
        return None


def _move(name: str) -> Any:
    if name == "getitem":
        return Tensor.__getitem__
    if name in ("mT", "T", "H", "mH"):
        return lambda tensor: getattr(tensor, name)
    return next(f for space in (Tensor, torch, F) if (f := getattr(space, name, None)) is not None)


def _pointwise(call: Any, results: list[Tensor]) -> list[Tensor]:
    bounds = [t for t in _tensors(call) if t.is_floating_point()]
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
