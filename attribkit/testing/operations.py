"""The operations that test networks are made of: the shape each makes and the Python it is written as.

Every operation can be written in several ways (`WRITINGS`) that compute the same. Parameters always live in modules, so
that one set of weights serves all writings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

#: How a network can be written: each operation a module; modules that work in place; one module for all equal
#: operations; functions; tensor methods, in place where that is allowed.
WRITINGS = ("modules", "inplace", "reused", "functions", "methods")

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Op:
    """One operation of a network.

    Attributes
    ----------
    kind : str
        A name in `KINDS`.
    inputs : tuple of int
        The values it takes: 0 is the image, i the result of the i-th operation.
    args : tuple of (str, value)
        Its arguments, such as ``(("kernel", 3), ("stride", 2))``.
    """

    kind: str
    inputs: tuple[int, ...]
    args: tuple[tuple[str, Any], ...] = ()

    def get(self, name: str, default: Any = None) -> Any:
        """Return an argument."""
        return dict(self.args).get(name, default)

    def pair(self, name: str, default: Any = None) -> tuple[Any, Any]:
        """Return an argument for rows and for columns; given once, it is for both."""
        value = self.get(name, default)
        return value if isinstance(value, tuple) else (value, value)

    def __repr__(self) -> str:
        args = "".join(f", {name}={value!r}" for name, value in self.args)
        return f"op({self.kind!r}, {', '.join(map(str, self.inputs))}{args})"


def op(kind: str, *inputs: int, **args: Any) -> Op:
    """Return an `Op`: ``op("conv", 0, channels=2, kernel=3)``."""
    if kind not in KINDS:
        raise ValueError(f"no operation is called {kind!r}; there are {', '.join(KINDS)}")
    return Op(kind, tuple(inputs), tuple(sorted(args.items())))


@dataclass(frozen=True)
class Kind:
    """How one kind of operation is written.

    Attributes
    ----------
    role : str
        The op kind as the engine calls it.
    module : callable or None
        ``(op, shapes) -> str``: the module's constructor; None where the operation is no module.
    call : str
        The expression by function: ``{x}`` and ``{y}`` are the values taken, ``{m}`` the module that holds parameters.
    method : str
        The expression by tensor method; empty: as by function.
    in_place : str
        The in-place expression; empty: there is none.
    parameters : bool
        Whether the module holds parameters (it is then always a module, and never shared).
    shape : callable
        ``(op, shapes) -> shape`` without the batch dimension.
    """

    role: str
    module: Callable[[Op, list[Shape]], str] | None = None
    call: str = "{m}({x})"
    method: str = ""
    in_place: str = ""
    parameters: bool = False
    shape: Callable[[Op, list[Shape]], Shape] = lambda op, shapes: shapes[0]

    def text(self, op: Op, shapes: list[Shape], which: str) -> str:
        """Return one of the expressions with the operation's arguments filled in."""
        template: str = getattr(self, which)
        for name, value in {**_DEFAULTS, **dict(op.args), "c": shapes[0][0]}.items():
            template = template.replace(f"<{name}>", repr(value))
        return template


_DEFAULTS = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, "ceil": False, "include": True}


def window_size(size: int, op: Op, axis: int = 0) -> int:
    """Return how many windows fit along a side of ``size``, as torch counts them; axis 0: from row to row."""
    kernel, dilation = op.pair("kernel")[axis], op.pair("dilation", 1)[axis]
    stride, padding = op.pair("stride", 1)[axis], op.pair("padding", 0)[axis]
    room = size + 2 * padding - dilation * (kernel - 1) - 1
    if not op.get("ceil", False):
        return int(room // stride + 1)
    count = -(-room // stride) + 1
    return int(count - 1 if (count - 1) * stride >= size + padding else count)  # no window may start beyond the border


def _windowed(op: Op, shapes: list[Shape]) -> Shape:
    channels, *sides = shapes[0]
    return (op.get("channels", channels), *(window_size(side, op, axis) for axis, side in enumerate(sides)))


def _constructor(template: str) -> Callable[[Op, list[Shape]], str]:
    return lambda op, shapes: Kind("", call=template).text(op, shapes, "call")


def _weighted(template: str) -> Callable[[Op, list[Shape]], str]:
    """Return what makes the constructor of a module with weights, that may do without a bias."""
    with_bias, without = _constructor(template), _constructor(template.removesuffix(")") + ", bias=False)")
    return lambda op, shapes: (with_bias if op.get("bias", True) else without)(op, shapes)


def _rectifier(module: str, call: str, in_place: str = "", method: str = "") -> Kind:
    return Kind("rectifier", _constructor(module), call, method=method, in_place=in_place)


def _gate(module: str, call: str, in_place: str = "", method: str = "") -> Kind:
    return Kind("gate", _constructor(module), call, method=method, in_place=in_place)


def _whole(role: str, module: str) -> Kind:
    """Return a class that is one operation as a whole: written as a module only."""
    return Kind(role, _constructor(module))


_POOL = "<kernel>, <stride>, <padding>"

KINDS: dict[str, Kind] = {
    "conv": Kind(
        "conv",
        _weighted("nn.Conv2d(<c>, <channels>, <kernel>, <stride>, <padding>, <dilation>, <groups>)"),
        parameters=True,
        shape=_windowed,
    ),
    "batch_norm": Kind("batch_norm", _constructor("nn.BatchNorm2d(<c>)"), parameters=True),
    "group_norm": Kind("norm", _constructor("nn.GroupNorm(<groups>, <c>)"), parameters=True),
    "layer_norm": Kind(
        "norm",
        _constructor("nn.LayerNorm(<c>)"),
        "{m}({x}.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)",
        parameters=True,
    ),
    "contrast_norm": Kind(
        "contrast_norm",
        _constructor("nn.LocalResponseNorm(3, alpha=0.5, beta=0.75, k=1.5)"),
        "F.local_response_norm({x}, 3, 0.5, 0.75, 1.5)",
    ),
    "attention": Kind("attention", _constructor("SelfAttention(<c>, fused=<fused>)"), parameters=True),
    "max_pool": Kind(
        "max_pool",
        _constructor(f"nn.MaxPool2d({_POOL}, <dilation>, ceil_mode=<ceil>)"),
        f"F.max_pool2d({{x}}, {_POOL}, <dilation>, <ceil>)",
        method=f"torch.max_pool2d({{x}}, {_POOL}, <dilation>, <ceil>)",
        shape=_windowed,
    ),
    "adaptive_max_pool": Kind(
        "max_pool",
        _constructor("nn.AdaptiveMaxPool2d((<rows>, <columns>))"),
        "F.adaptive_max_pool2d({x}, (<rows>, <columns>))",
        shape=lambda op, shapes: (shapes[0][0], op.get("rows"), op.get("columns")),
    ),
    "avg_pool": Kind(
        "avg_pool",
        _constructor(f"nn.AvgPool2d({_POOL}, <ceil>, <include>)"),
        f"F.avg_pool2d({{x}}, {_POOL}, <ceil>, <include>)",
        shape=_windowed,
    ),
    "adaptive_avg_pool": Kind(
        "avg_pool",
        _constructor("nn.AdaptiveAvgPool2d((<rows>, <columns>))"),
        "F.adaptive_avg_pool2d({x}, (<rows>, <columns>))",
        shape=lambda op, shapes: (shapes[0][0], op.get("rows"), op.get("columns")),
    ),
    "dropout": Kind("dropout", _constructor("nn.Dropout(0.5)"), "F.dropout({x}, 0.5, self.training)"),
    "sum": Kind("sum", None, "{x} + {y}", method="torch.add({x}, {y})", in_place="{x}.add_({y})"),
    "difference": Kind("sum", None, "{x} - {y}", method="torch.sub({x}, {y})", in_place="{x}.sub_({y})"),
    "product": Kind("product", None, "{x} * {y}", method="{x}.mul({y})"),
    "concat": Kind(
        "concat",
        None,
        "torch.cat([{x}, {y}], dim=1)",
        shape=lambda op, shapes: (shapes[0][0] + shapes[1][0], *shapes[0][1:]),
    ),
    "flatten": Kind(
        "flatten",
        _constructor("nn.Flatten()"),
        "torch.flatten({x}, 1)",
        method="{x}.flatten(1)",
        shape=lambda op, shapes: (shapes[0][0] * shapes[0][1] * shapes[0][2],),  # a view: nothing in place on it
    ),
    "mean": Kind("mean", None, "{x}.mean((2, 3))", shape=lambda op, shapes: (shapes[0][0],)),
    "linear": Kind(
        "linear",
        _weighted("nn.Linear(<c>, <features>)"),
        parameters=True,
        shape=lambda op, shapes: (op.get("features"),),
    ),
    # rectifiers
    "relu": _rectifier("nn.ReLU()", "F.relu({x})", "F.relu({x}, inplace=True)", method="{x}.relu()"),
    "relu6": _rectifier("nn.ReLU6()", "F.relu6({x})", "F.relu6({x}, inplace=True)"),
    "hardtanh": _rectifier("nn.Hardtanh(0.0, 1.5)", "F.hardtanh({x}, 0.0, 1.5)", "F.hardtanh_({x}, 0.0, 1.5)"),
    "leaky_relu": _rectifier("nn.LeakyReLU(0.1)", "F.leaky_relu({x}, 0.1)", "F.leaky_relu_({x}, 0.1)"),
    "prelu": Kind(
        "rectifier",
        _constructor("nn.PReLU(<c>)"),
        "F.prelu({x}, {m}.weight)",
        method="{x}.prelu({m}.weight)",
        parameters=True,
    ),
    "rrelu": _rectifier("nn.RReLU()", "F.rrelu({x})", "F.rrelu_({x})"),
    "elu": _rectifier("nn.ELU()", "F.elu({x})", "F.elu_({x})"),
    "selu": _rectifier("nn.SELU()", "F.selu({x})", "torch.selu_({x})", method="torch.selu({x})"),
    "celu": _rectifier("nn.CELU(0.5)", "F.celu({x}, 0.5)", "torch.celu_({x}, 0.5)"),
    "gelu": _rectifier("nn.GELU()", "F.gelu({x})"),
    "gelu_tanh": _rectifier("nn.GELU(approximate='tanh')", "F.gelu({x}, approximate='tanh')"),
    "silu": _rectifier("nn.SiLU()", "F.silu({x})", "F.silu({x}, inplace=True)"),
    "mish": _rectifier("nn.Mish()", "F.mish({x})", "F.mish({x}, inplace=True)"),
    "hardswish": _rectifier("nn.Hardswish()", "F.hardswish({x})", "F.hardswish({x}, inplace=True)"),
    "softplus": _rectifier("nn.Softplus(beta=2.0)", "F.softplus({x}, 2.0)"),
    "swish": _whole("rectifier", "activations.Swish()"),
    "hard_mish": _whole("rectifier", "activations.HardMish()"),
    "quick_gelu": _whole("rectifier", "activations.QuickGELU()"),
    # gates
    "sigmoid": _gate("nn.Sigmoid()", "torch.sigmoid({x})", "{x}.sigmoid_()", method="{x}.sigmoid()"),
    "hardsigmoid": _gate("nn.Hardsigmoid()", "F.hardsigmoid({x})", "F.hardsigmoid({x}, inplace=True)"),
    "tanh": _gate("nn.Tanh()", "torch.tanh({x})", "{x}.tanh_()", method="{x}.tanh()"),
    "softmax": _gate("nn.Softmax(dim=1)", "F.softmax({x}, dim=1)", method="{x}.softmax(1)"),
    "gate_of_relu6": _whole("gate", "activations.HardSigmoid()"),
}

RECTIFIERS = tuple(name for name, kind in KINDS.items() if kind.role == "rectifier")
GATES = tuple(name for name, kind in KINDS.items() if kind.role == "gate")
#: Rectifiers computed without rounding: where two inputs are equal so are the outputs, to the last bit.
EXACT_RECTIFIERS = ("relu", "leaky_relu", "relu6", "hardtanh", "prelu")

#: Kinds whose output autograd does not keep and that share no storage with their input: it may be overwritten.
OVERWRITABLE = ("conv", "batch_norm", "group_norm", "linear", "sum", "difference", "concat", "max_pool", "avg_pool")

#: Modules with an ``inplace`` argument.
# fmt: off
_INPLACE_MODULES = frozenset((
    "relu", "relu6", "hardtanh", "leaky_relu", "rrelu", "elu", "selu", "celu", "silu", "mish", "hardswish",
    "hardsigmoid",
))
# fmt: on


def module_in_place(kind: str, constructor: str) -> str | None:
    """Return the constructor of a module that works in place, None where the class cannot."""
    if kind not in _INPLACE_MODULES:
        return None
    head = constructor.removesuffix(")")
    return f"{head}{'' if head.endswith('(') else ', '}inplace=True)"
