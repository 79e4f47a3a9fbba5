"""What a forward pass does, seen from below, and whether the engine's sites account for it.

The engine watches modules and torch functions. `watch` uses neither: it records what reaches ATen's dispatcher, after
every function and method has been taken apart, and which module was running. `unaccounted` then looks for the site of
each operation, and for the operation of each rectifier's site.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from oracle import COMPOSITES
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

RECTIFIERS = {
    *("relu", "leaky_relu", "elu", "celu", "selu", "gelu", "silu", "mish", "hardswish", "softplus"),
    *("_prelu_kernel", "rrelu_with_noise"),
}
GATES = {"sigmoid", "hardsigmoid", "tanh", "log_sigmoid_forward", "glu"}
SOFTMAXES = {"_softmax", "_log_softmax", "_safe_softmax"}
POOLS = {"max_pool2d_with_indices", "max_pool3d_with_indices", "adaptive_max_pool2d", "adaptive_max_pool3d"}
# Written inline: what the engine may leave plain, but has to list. Names that are one operation share a group.
INLINE = {
    **dict.fromkeys(("clamp", "clamp_min", "clamp_max", "clip"), "clamp"),
    **dict.fromkeys(("pow", "square", "rpow"), "pow"),
    **{name: name for name in ("threshold", "hardshrink", "softshrink", "abs", "exp", "exp2", "expm1", "log", "log1p")},
    **{name: name for name in ("log2", "sqrt", "rsqrt", "reciprocal", "sin", "cos", "erf", "erfc", "atan", "where")},
    **{name: name for name in ("maximum", "minimum", "max", "min", "amax", "amin", "logsumexp", "var", "std")},
    "linalg_vector_norm": "norm",
    "norm": "norm",
    "var_mean": "var",
    "std_mean": "std",
}
# Sites that are several operations of ATen's each: a norm's root, attention's softmax, a recurrent layer's gates.
SEVERAL = {
    "norm": {"pow", "rsqrt", "sqrt", "clamp", "reciprocal", "norm", "var"},
    "contrast_norm": {"pow", "clamp"},
    "attention": {"softmax"},
    **{op: {"gate"} for op in ("LSTM", "GRU", "lstm()", "gru()")},
}


@dataclass(frozen=True)
class Event:
    """One operation: the path of the module that ran, the operation's name, and what it counts as."""

    path: str
    op: str
    group: str


@dataclass
class Activity:
    """What a forward pass did, and how often each module that is one operation as a whole was called."""

    events: list[Event] = field(default_factory=list)
    whole_calls: Counter[str] = field(default_factory=Counter)
    whole_kinds: dict[str, str] = field(default_factory=dict)

    @property
    def rectifiers(self) -> int:
        """Return how many rectifiers there were, those inside a gate not counted."""
        whole = sum(count for path, count in self.whole_calls.items() if self.whole_kinds[path] == "rectifier")
        return whole + sum(event.group == "rectifier" for event in self.events)


def group(name: str, args: Sequence[Any]) -> str | None:
    """Say what an operation counts as; None for those that are no activation."""
    if name == "hardtanh":
        return "rectifier" if (args[1] if len(args) > 1 else -1) == 0 else "gate"
    if name in RECTIFIERS:
        return "rectifier"
    if name in GATES:
        return "gate"
    if name in SOFTMAXES:
        return "softmax"
    return "max_pool" if name in POOLS else INLINE.get(name)


class _Dispatch(TorchDispatchMode):
    def __init__(self, note: Any) -> None:
        super().__init__()
        self.note = note

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        name = name[:-1] if name.endswith("_") and not name.startswith("__") else name
        floats = any(isinstance(arg, Tensor) and arg.is_floating_point() for arg in args)
        kind = group(name, args)
        if kind is not None and floats:
            self.note(name, kind)
        return func(*args, **(kwargs or {}))


def watch(model: nn.Module, *inputs: Tensor) -> tuple[Activity, Any]:
    """Run the model; return what it did, in order, and its output."""
    activity, stack = Activity(), [""]
    paths = {module: path for path, module in model.named_modules()}
    inside = 0  # of a module that is one operation as a whole
    original = nn.Module.__call__

    def note(name: str, kind: str) -> None:
        if not inside:
            activity.events.append(Event(stack[-1], name, kind))

    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        nonlocal inside
        whole = next((COMPOSITES[cls] for cls in type(self).__mro__ if cls in COMPOSITES), None)
        path = paths.get(self, stack[-1])
        if whole is not None and not inside:
            activity.whole_calls[path] += 1
            activity.whole_kinds[path] = whole
        stack.append(path)
        inside += whole is not None
        try:
            return original(self, *args, **kwargs)
        finally:
            inside -= whole is not None
            stack.pop()

    nn.Module.__call__ = call  # type: ignore[method-assign]
    try:
        with torch.no_grad(), _Dispatch(note):
            output = model(*inputs)
    finally:
        nn.Module.__call__ = original  # type: ignore[method-assign]
    return activity, output


def unaccounted(activity: Activity, sites: Sequence[Any]) -> list[str]:
    """Return the operations without a site and the rectifiers' sites without an operation, in words.

    Parameters
    ----------
    activity
        What `watch` saw.
    sites
        The engine's sites of the same model and input shape.
    """
    problems = []
    free: dict[str, list[Any]] = {}
    missing: Counter[tuple[str, str]] = Counter()
    for site in sites:
        free.setdefault(site.path, []).append(site)
    for path, count in activity.whole_calls.items():
        own = [site for site in free.pop(path, []) if site.kind == activity.whole_kinds[path]]
        if len(own) != count:
            problems.append(f"{path}: {count} calls of a whole {activity.whole_kinds[path]}, {len(own)} sites")
    for event in activity.events:
        here = free.get(event.path, [])
        single = next((site for site in here if _is_of(site, event)), None)
        if single is not None:
            here.remove(single)
        elif not any(event.group in SEVERAL.get(key, ()) for site in here for key in (site.kind, site.op)):
            missing[event.path, event.op] += 1
    problems += [f"{path}: {count} times {op} without a site" for (path, op), count in missing.items()]
    problems += [
        f"{site.name}: a rectifier's site ({site.op}) without an operation"
        for left in free.values()
        for site in left
        if site.kind == "rectifier"
    ]
    return problems


def _is_of(site: Any, event: Event) -> bool:
    if event.group in ("rectifier", "gate", "max_pool"):
        return bool(site.kind == event.group)
    if event.group == "softmax":
        return site.kind == "gate" and "softm" in site.op.lower()
    return site.kind == "nonlinear" and INLINE.get(site.op.removesuffix("()"), site.op.lower()) == event.group
