"""What kind of operation a function or a module class is: data, one row an operation.

A *function* row is looked up by the function object that `torch.overrides.TorchFunctionMode` reports. A *module* row
says either that the module is one operation, written as one call of a function of the same kind (``nn.ReLU``), or that
it is one operation *as a whole* although it is written from other primitives (timm's ``Swish``, ``HardSigmoid``).
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

#: Kinds whose signal has one way in, the first argument: whatever else they take is a parameter.
SINGLE_INPUT = frozenset(
    {"conv", "linear", "rectifier", "gate", "max_pool", "avg_pool", "batch_norm", "norm", "contrast_norm", "dropout"}
)

#: Kinds that are not linear in their inputs: what a method leaves plain there deserves a word.
NONLINEAR = frozenset(
    {"rectifier", "gate", "max_pool", "norm", "contrast_norm", "product", "attention", "recurrent", "nonlinear"}
)


@dataclass(frozen=True)
class Operation:
    """A function the engine knows: its kind, its name in site names and how its arguments are called."""

    kind: str
    name: str
    signature: inspect.Signature | None = None

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return the call's arguments by name, defaults filled in (positions as names where no signature is known)."""
        if self._simple is not None:
            defaults, required = self._simple
            if not kwargs and len(required) <= len(args) <= len(defaults):  # those without a default come first
                return {**defaults, **dict(zip(defaults, args, strict=False))}
            if len(args) <= len(defaults) and kwargs.keys() <= defaults.keys():
                given = dict(zip(defaults, args, strict=False))
                # `inspect` would take ten times as long, at every call of every operation
                if given.keys().isdisjoint(kwargs) and required <= given.keys() | kwargs.keys():
                    return {**defaults, **given, **kwargs}
        if self.signature is not None:
            try:
                bound = self.signature.bind(*args, **kwargs)
            except TypeError:  # an overload with another order of arguments: the call itself is the judge
                return {**{str(i): a for i, a in enumerate(args)}, **kwargs}
            bound.apply_defaults()
            return dict(bound.arguments)
        return {**{str(i): a for i, a in enumerate(args)}, **kwargs}

    @functools.cached_property
    def may_be_in_place(self) -> bool:
        """Whether a call can say that it is to work in place."""
        return self.signature is not None and "inplace" in self.signature.parameters

    @functools.cached_property
    def _simple(self) -> tuple[dict[str, Any], set[str]] | None:
        """The defaults by name and the names without one, where every argument can be given by position."""
        if self.signature is None:
            return None
        parameters = self.signature.parameters.values()
        if any(p.kind is not p.POSITIONAL_OR_KEYWORD for p in parameters):
            return None
        return {p.name: p.default for p in parameters}, {p.name for p in parameters if p.default is p.empty}

    def kind_of_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
        """Return the kind of this very call; None where it is no site (a sum with a plain number, say)."""
        if self.kind == "hardtanh":  # a rectifier where it cuts at zero (ReLU6), a two-sided squashing elsewhere
            return "rectifier" if self.bind(args, kwargs).get("min_val") == 0 else "gate"
        if self.kind in ("sum", "product"):
            operands = sum(isinstance(a, torch.Tensor) for a in (*args, *kwargs.values()))
            return self.kind if operands >= 2 else None
        if self.kind == "nonlinear" and not any(isinstance(a, torch.Tensor) for a in (*args, *kwargs.values())):
            return None
        return self.kind


# Signatures of builtins, which have none of their own. Only names and defaults matter; the bodies never run.
# fmt: off
def _conv(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1): ...  # type: ignore[no-untyped-def]
def _conv_transpose(input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1): ...  # type: ignore[no-untyped-def]
def _linear(input, weight, bias=None): ...  # type: ignore[no-untyped-def]
def _unary(input, inplace=False): ...  # type: ignore[no-untyped-def]
def _leaky(input, negative_slope=0.01, inplace=False): ...  # type: ignore[no-untyped-def]
def _prelu(input, weight): ...  # type: ignore[no-untyped-def]
def _rrelu(input, lower=1.0 / 8, upper=1.0 / 3, training=False, generator=None): ...  # type: ignore[no-untyped-def]
def _elu(input, alpha=1.0, scale=1, input_scale=1): ...  # type: ignore[no-untyped-def]
def _celu(input, alpha=1.0): ...  # type: ignore[no-untyped-def]
def _gelu(input, *, approximate="none"): ...  # type: ignore[no-untyped-def]
def _softplus(input, beta=1.0, threshold=20.0): ...  # type: ignore[no-untyped-def]
def _hardtanh(input, min_val=-1.0, max_val=1.0): ...  # type: ignore[no-untyped-def]
def _max_pool(input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False): ...  # type: ignore[no-untyped-def]
def _avg_pool(  # type: ignore[no-untyped-def]
    input, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None): ...
def _adaptive(input, output_size, return_indices=False): ...  # type: ignore[no-untyped-def]
def _batch_norm(input, weight, bias, running_mean, running_var, training, momentum, eps, cudnn_enabled=True): ...  # type: ignore[no-untyped-def]
def _softmax(input, dim, dtype=None): ...  # type: ignore[no-untyped-def]
def _binary(input, other, *, alpha=1): ...  # type: ignore[no-untyped-def]
def _product(input, other): ...  # type: ignore[no-untyped-def]
def _matmul(input, other): ...  # type: ignore[no-untyped-def]
def _mean(input, dim=None, keepdim=False, *, dtype=None): ...  # type: ignore[no-untyped-def]
def _flatten(input, start_dim=0, end_dim=-1): ...  # type: ignore[no-untyped-def]
def _cat(tensors, dim=0): ...  # type: ignore[no-untyped-def]
def _attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False): ...  # type: ignore[no-untyped-def]
# fmt: on

# kind, names (looked up in torch.nn.functional, torch, torch._C._nn and torch.Tensor), signature of the builtin form
_ROWS: tuple[tuple[str, str, Callable[..., Any] | None], ...] = (
    ("conv", "conv1d conv2d conv3d", _conv),
    ("conv", "conv_transpose1d conv_transpose2d conv_transpose3d", _conv_transpose),
    ("linear", "linear", _linear),
    ("rectifier", "relu relu_ relu6 selu selu_ silu silu_ mish mish_ hardswish hardswish_", _unary),
    ("rectifier", "leaky_relu leaky_relu_", _leaky),
    ("rectifier", "prelu", _prelu),
    ("rectifier", "rrelu rrelu_", _rrelu),
    ("rectifier", "elu elu_", _elu),
    ("rectifier", "celu celu_", _celu),
    ("rectifier", "gelu gelu_", _gelu),
    ("rectifier", "softplus", _softplus),
    ("hardtanh", "hardtanh hardtanh_", _hardtanh),
    ("gate", "sigmoid sigmoid_ hardsigmoid hardsigmoid_ tanh tanh_ logsigmoid softsign tanhshrink glu", _unary),
    ("gate", "softmax log_softmax softmin", _softmax),
    ("max_pool", "max_pool1d max_pool2d max_pool3d", _max_pool),
    ("max_pool", "max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices", None),
    ("max_pool", "adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d", _adaptive),
    ("max_pool", "adaptive_max_pool1d_with_indices adaptive_max_pool2d_with_indices", None),
    ("avg_pool", "avg_pool1d avg_pool2d avg_pool3d", _avg_pool),
    ("avg_pool", "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d", _adaptive),
    ("batch_norm", "batch_norm", _batch_norm),
    ("norm", "layer_norm group_norm instance_norm rms_norm normalize", None),
    ("contrast_norm", "local_response_norm", None),
    ("sum", "add add_ sub sub_ __rsub__ rsub", _binary),
    ("product", "mul mul_ multiply multiply_", _product),
    ("concat", "cat concat concatenate stack", _cat),
    ("attention", "scaled_dot_product_attention", _attention),
    ("attention", "multi_head_attention_forward", None),
    ("recurrent", "lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell", None),
    ("dropout", "dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout dropout_", None),
    ("matmul", "matmul bmm mm", _matmul),
    ("matmul", "addmm baddbmm einsum __rmatmul__", None),
    ("resample", "interpolate upsample grid_sample pixel_shuffle pixel_unshuffle pad", None),
    ("mean", "mean", _mean),
    ("flatten", "flatten", _flatten),
    (
        "nonlinear",
        "clamp clamp_ clamp_min clamp_min_ clamp_max clamp_max_ clip clip_ threshold threshold_ hardshrink softshrink "
        "abs abs_ exp exp_ exp2 expm1 log log1p log2 sqrt sqrt_ rsqrt rsqrt_ reciprocal reciprocal_ square square_ "
        "pow pow_ __pow__ "
        "__rpow__ sin cos erf erfc atan maximum minimum max min amax amin logsumexp var std norm div div_ __rdiv__ "
        "__rtruediv__ true_divide where lp_pool2d",
        None,
    ),
)

_NAMESPACES: tuple[Any, ...] = (F, torch, torch._C._nn, torch._VF, torch.Tensor)

# torch.nn's classes are one call of one function each; timm's in the second group likewise.
_MODULES: tuple[tuple[str, str, str], ...] = (
    (
        "torch.nn",
        "conv",
        "Conv1d Conv2d Conv3d ConvTranspose1d ConvTranspose2d ConvTranspose3d",
    ),
    ("torch.nn", "linear", "Linear"),
    (
        "torch.nn",
        "rectifier",
        "ReLU LeakyReLU PReLU RReLU ELU SELU CELU GELU SiLU Mish Hardswish Softplus",
    ),
    (
        "torch.nn",
        "gate",
        "Sigmoid Hardsigmoid Tanh Softmax LogSoftmax Softmin Softmax2d LogSigmoid Softsign Tanhshrink GLU",
    ),
    ("torch.nn", "hardtanh", "Hardtanh"),
    ("torch.nn", "max_pool", "MaxPool1d MaxPool2d MaxPool3d AdaptiveMaxPool1d AdaptiveMaxPool2d AdaptiveMaxPool3d"),
    ("torch.nn", "avg_pool", "AvgPool1d AvgPool2d AvgPool3d AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveAvgPool3d"),
    ("torch.nn", "batch_norm", "BatchNorm1d BatchNorm2d BatchNorm3d SyncBatchNorm"),
    ("torch.nn", "norm", "LayerNorm GroupNorm InstanceNorm1d InstanceNorm2d InstanceNorm3d RMSNorm"),
    ("torch.nn", "contrast_norm", "LocalResponseNorm"),
    ("torch.nn", "attention", "MultiheadAttention"),
    ("torch.nn", "recurrent", "LSTM GRU RNN LSTMCell GRUCell RNNCell"),
    ("torch.nn", "dropout", "Dropout Dropout1d Dropout2d Dropout3d AlphaDropout FeatureAlphaDropout"),
    ("torch.nn", "resample", "Upsample UpsamplingNearest2d UpsamplingBilinear2d PixelShuffle PixelUnshuffle"),
    ("torch.nn", "flatten", "Flatten"),
    ("torch.nn", "nonlinear", "Threshold Hardshrink Softshrink"),
    ("timm.layers.activations", "rectifier", "GELU GELUTanh PReLU"),
    (
        "timm.layers.norm",
        "norm",
        "LayerNorm LayerNorm2d GroupNorm GroupNorm1 RmsNorm RmsNorm2d SimpleNorm SimpleNorm2d",
    ),
)

# Written from other primitives, yet one operation: nothing inside them is a site of its own.
_WHOLE: tuple[tuple[str, str, str], ...] = (
    ("timm.layers.activations", "rectifier", "Swish Mish HardSwish HardMish QuickGELU"),
    ("timm.layers.activations_me", "rectifier", "SwishMe MishMe HardSwishMe HardMishMe"),
    # GELUs of other libraries
    (
        "transformers.activations",
        "rectifier",
        "NewGELUActivation FastGELUActivation QuickGELUActivation AccurateGELUActivation",
    ),
    ("open_clip.transformer", "rectifier", "QuickGELU"),
    ("timm.layers.activations", "gate", "Sigmoid Tanh HardSigmoid"),
    ("timm.layers.activations_me", "gate", "HardSigmoidMe"),
)


@dataclass(frozen=True)
class ModuleKind:
    """What a module class is: an operation of one kind, written as one function call or as a whole."""

    kind: str
    whole: bool
    cls: type


def site_function_name(name: str) -> str:
    """Return the name a function has in site names: without the underscores of in-place and operator forms."""
    return name.strip("_")


class Vocabulary:
    """The operations known to the engine: the built-in rows and those taught by plugins.

    Parameters
    ----------
    taught
        Pairs of an op kind and the module class or function that is one (hook ``attribkit_inverse_layers``). They
        come before the built-in rows.
    """

    def __init__(self, taught: Iterable[tuple[str, Any]] = ()) -> None:
        self.functions: dict[Any, Operation] = dict(_builtin_functions())
        self._classes: dict[type, ModuleKind] = {}
        self._pending = [(m, k, n, False) for m, k, n in _MODULES] + [(m, k, n, True) for m, k, n in _WHOLE]
        self._seen_modules = -1
        self._taught: dict[type, ModuleKind] = {}
        self._cache: dict[type, ModuleKind | None] = {}
        for kind, what in taught:
            if isinstance(what, type):
                self._taught[what] = ModuleKind(kind, True, what)
            else:
                packet = getattr(what, "overloadpacket", what)
                name = getattr(packet, "__name__", "") or type(what).__name__
                operation = Operation(kind, site_function_name(name), _signature_of(what, None))
                self.functions.update(dict.fromkeys(_forms(what, packet), operation))

    @functools.cached_property
    def kinds(self) -> frozenset[str]:
        """The op kinds there are."""
        of_modules = {kind.kind for kind in self._taught.values()}
        return frozenset({op.kind for op in self.functions.values()} | of_modules | {"other"}) - {"hardtanh"}

    def module_kind(self, cls: type) -> ModuleKind | None:
        """Return what a module class is (the most derived class known decides), None for a composite."""
        self._resolve()
        if cls in (cache := self._cache):
            return cache[cls]
        tables = (self._taught, self._classes)
        found = cache[cls] = next((known[base] for base in cls.__mro__ for known in tables if base in known), None)
        return found

    def _resolve(self) -> None:
        """Look up classes of modules imported by now: a class nobody imported has no instances, so none is missed."""
        if not self._pending or len(sys.modules) == self._seen_modules:
            return
        self._seen_modules = len(sys.modules)
        waiting = []
        for row in self._pending:
            module_name, kind, names, whole = row
            module = sys.modules.get(module_name)
            if module is None:
                waiting.append(row)
                continue
            for name in names.split():
                cls = getattr(module, name, None)
                if isinstance(cls, type):
                    self._classes.setdefault(cls, ModuleKind(kind, whole, cls))
            self._cache = {}
        self._pending = waiting


def _signature_of(function: Any, fallback: Callable[..., Any] | None) -> inspect.Signature | None:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        signature = None
    # boolean_dispatch and method descriptors report (*args, **kwargs), which names nothing
    if signature is None or all(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in signature.parameters.values()):
        return inspect.signature(fallback) if fallback is not None else None
    return signature


@functools.cache
def _builtin_functions() -> tuple[tuple[Any, Operation], ...]:
    """Return the rows by function object; reading signatures takes milliseconds, so once in a process."""
    return tuple(_read_rows())


def _forms(function: Any, packet: Any) -> list[Any]:
    """Return what else is called where a function is: an operator of torch.ops and its overloads are one."""
    overloads = [getattr(packet, each) for each in packet.overloads()] if hasattr(packet, "overloads") else []
    if function is packet:
        return [packet, *overloads]
    return [function, packet] if len(overloads) == 1 else [function]


def functions_named(names: str) -> list[Any]:
    """Return torch's functions and methods of these names (blanks between them), aten's own left out."""
    found = [getattr(namespace, name, None) for name in names.split() for namespace in _NAMESPACES]
    return [function for function in found if callable(function)]


def _read_rows() -> Iterable[tuple[Any, Operation]]:
    for kind, names, stub in _ROWS:
        for name in names.split():
            for namespace in _NAMESPACES:
                function = getattr(namespace, name, None)
                if callable(function):
                    yield function, Operation(kind, site_function_name(name), _signature_of(function, stub))
            packet = getattr(torch.ops.aten, name, None)
            if packet is not None:
                operation = Operation(kind, site_function_name(name), inspect.signature(stub) if stub else None)
                yield packet, operation
                for overload in packet.overloads():
                    yield getattr(packet, overload), operation


def is_op_module(module: nn.Module, known: ModuleKind | None) -> bool:
    """Tell whether a module is one operation written as one function call, so that the call bears the module's path.

    A subclass with a forward of its own and modules inside (timm's ``BatchNormAct2d``) is a composite.
    """
    if known is None or known.whole:
        return False
    return has_forward_of(module, known.cls) or not any(True for _ in module.children())


def has_forward_of(module: nn.Module, cls: type) -> bool:
    """Tell whether ``module`` runs the forward that ``cls`` defines, neither overridden nor replaced."""
    return type(module).forward is cls.forward and "forward" not in module.__dict__  # type: ignore[attr-defined]
