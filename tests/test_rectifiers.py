"""Every rectifier, however it is written, follows the formula; gates and what is inside them do not.

The formulas are written out here from primitives (clamp, exp, erf, tanh) and differentiated by autograd; the maps are
computed layer by layer, without the engine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from rectifier_modules import (
    ByClamp,
    ByFunction,
    CallsF,
    CallsSuper,
    CallsTensorMethod,
    LeakyAutogradFunction,
    OwnBackward,
    SiLUFromParts,
    fused,
)
from timm.layers import activations, activations_me, get_act_fn, get_act_layer
from torch import nn

import attribkit as ak

pytestmark = pytest.mark.usefixtures("one_thread")
RULES = ("gradient", "guided_backprop", "deconvnet")
X = torch.randn(2, 3, 7, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def softplus(x):
    return x.clamp(min=0) + torch.log1p(torch.exp(-x.abs()))


def elu(x, alpha=1.0):
    return torch.where(x > 0, x, alpha * (torch.exp(x.clamp(max=0)) - 1))


SIGMA = {
    "relu": lambda x: x * (x > 0),
    "relu6": lambda x: x.clamp(0, 6),
    "hardtanh": lambda x: x.clamp(0, 0.5),
    "leaky_relu": lambda x: torch.where(x > 0, x, 0.01 * x),
    "prelu": lambda x: torch.where(x > 0, x, 0.25 * x),
    "rrelu": lambda x: torch.where(x > 0, x, (1 / 8 + 1 / 3) / 2 * x),
    "elu": elu,
    "selu": lambda x: 1.0507009873554805 * elu(x, 1.6732632423543772),
    "celu": lambda x: torch.where(x > 0, x, 2 * (torch.exp(x.clamp(max=0) / 2) - 1)),
    "gelu": lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))),
    "gelu_tanh": lambda x: x * 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "quick_gelu": lambda x: x / (1 + torch.exp(-1.702 * x)),
    "silu": lambda x: x / (1 + torch.exp(-x)),
    "mish": lambda x: x * torch.tanh(softplus(x)),
    "hardswish": lambda x: x * (x + 3).clamp(0, 6) / 6,
    "hardmish": lambda x: 0.5 * x * (x + 2).clamp(0, 2),
    "softplus": softplus,
}
# fmt: off
WRITINGS = {
    "relu": [
        nn.ReLU(), nn.ReLU(inplace=True), F.relu, partial(F.relu, inplace=True), F.relu_, torch.relu, torch.relu_,
        lambda x: x.relu(), lambda x: x.relu_(), torch.ops.aten.relu, get_act_layer("relu")(), get_act_fn("relu"),
        CallsF(), CallsSuper(), CallsTensorMethod(), ByClamp(), ByFunction(), OwnBackward(),
    ],
    "relu6": [nn.ReLU6(), nn.ReLU6(inplace=True), F.relu6, partial(F.relu6, inplace=True), get_act_layer("relu6")()],
    "hardtanh": [
        nn.Hardtanh(0.0, 0.5), nn.Hardtanh(0, 0.5, inplace=True), lambda x: F.hardtanh(x, 0.0, 0.5),
        lambda x: F.hardtanh_(x, min_val=0, max_val=0.5), lambda x: F.hardtanh(x, 0.0, 0.5, True),
    ],
    "leaky_relu": [
        nn.LeakyReLU(), nn.LeakyReLU(inplace=True), F.leaky_relu, F.leaky_relu_, partial(F.leaky_relu, inplace=True),
        get_act_layer("leaky_relu")(), LeakyAutogradFunction(),
    ],
    "prelu": [
        nn.PReLU(), nn.PReLU(6), activations.PReLU(), get_act_layer("prelu")(),
        lambda x: F.prelu(x, torch.full((1,), 0.25, dtype=x.dtype)),
        lambda x: torch.prelu(x, torch.full((6,), 0.25, dtype=x.dtype)),
        lambda x: x.prelu(torch.full((1,), 0.25, dtype=x.dtype)),
    ],
    "rrelu": [nn.RReLU(), nn.RReLU(inplace=True), F.rrelu, F.rrelu_, torch.rrelu, torch.rrelu_],
    "elu": [nn.ELU(), nn.ELU(inplace=True), F.elu, F.elu_, partial(F.elu, inplace=True), get_act_layer("elu")()],
    "selu": [nn.SELU(), nn.SELU(inplace=True), F.selu, F.selu_, torch.selu, torch.selu_, get_act_layer("selu")()],
    "celu": [
        nn.CELU(2.0), nn.CELU(2.0, inplace=True), partial(F.celu, alpha=2.0), partial(F.celu_, alpha=2.0),
        partial(torch.celu, alpha=2.0), partial(torch.celu_, alpha=2.0),
    ],
    "gelu": [nn.GELU(), F.gelu, activations.GELU(), get_act_layer("gelu")(), get_act_fn("gelu")],
    "gelu_tanh": [
        nn.GELU("tanh"), partial(F.gelu, approximate="tanh"), activations.GELUTanh(), get_act_layer("gelu_tanh")(),
        get_act_fn("gelu_tanh"),
    ],
    "quick_gelu": [activations.QuickGELU(), get_act_layer("quick_gelu")()],
    "silu": [
        nn.SiLU(), nn.SiLU(inplace=True), F.silu, partial(F.silu, inplace=True), activations.Swish(),
        activations.Swish(inplace=True), activations_me.SwishMe(), get_act_layer("swish")(), SiLUFromParts(),
    ],
    "mish": [
        nn.Mish(), nn.Mish(inplace=True), F.mish, partial(F.mish, inplace=True), activations.Mish(),
        activations_me.MishMe(), get_act_layer("mish")(),
    ],
    "hardswish": [
        nn.Hardswish(), nn.Hardswish(inplace=True), F.hardswish, partial(F.hardswish, inplace=True),
        activations.HardSwish(), activations.HardSwish(inplace=True), activations_me.HardSwishMe(),
        get_act_layer("hard_swish")(),
    ],
    "hardmish": [
        activations.HardMish(), activations.HardMish(inplace=True), activations_me.HardMishMe(),
        get_act_layer("hard_mish")(),
    ],
    "softplus": [nn.Softplus(), F.softplus],
}
# fmt: on
CASES = [(name, index) for name, writings in WRITINGS.items() for index in range(len(writings))]


class Net(nn.Module):
    """Two convolutions, an activation after each, and a linear head whose weights are of both signs."""

    def __init__(self, act1, act2=None):
        super().__init__()
        torch.manual_seed(3)
        self.conv1 = nn.Conv2d(3, 6, 3)
        self.conv2 = nn.Conv2d(6, 6, 3)
        self.head = nn.Linear(54, 4)
        self.act1 = act1
        self.act2 = act2 if act2 is not None else act1  # one module, called twice
        self.double().eval()

    def forward(self, x):
        x = self.act1(self.conv1(x) * 3)
        x = self.act2(self.conv2(x) * 3)
        return self.head(x.flatten(1))


@dataclass
class Stage:
    """What an activation is made of: ordinary operations, a rectifier (None: none), ordinary operations."""

    sigma: object
    before: object = staticmethod(lambda x: x)
    after: object = staticmethod(lambda x: x)

    def __call__(self, x):
        y = self.before(x)
        return self.after(self.sigma(y) if self.sigma is not None else y)

    def back(self, x, signal, rule):
        inner = self.before(x)
        if self.sigma is None:
            return pull(self, x, signal)
        signal = pull(self.after, self.sigma(inner), signal)
        if rule == "gradient":
            signal = pull(self.sigma, inner, signal)
        elif rule == "guided_backprop":
            signal = pull(self.sigma, inner, signal.clamp(min=0))
        else:
            signal = signal.clamp(min=0)
        return pull(self.before, x, signal)


def pull(function, x, signal):
    """Return a signal carried back by a function's ordinary derivative."""
    x = x.detach().clone().requires_grad_()
    return torch.autograd.grad(function(x), x, signal)[0]


def by_hand(net, stage, x, rule, target=1):
    """Return the map of a class of a `Net`, layer by layer."""
    z1 = net.conv1(x) * 3
    z2 = net.conv2(stage(z1)) * 3
    signal = net.head.weight[target].expand(len(x), -1).reshape(z2.shape)
    signal = stage.back(z2, signal, rule) * 3
    signal = F.conv_transpose2d(signal, net.conv2.weight)
    signal = stage.back(z1, signal, rule) * 3
    return F.conv_transpose2d(signal, net.conv1.weight).detach()


def agree(net, stage, count, tolerance=1e-10, masked=False):
    """Compare all three maps; ``masked``: what follows the rectifier is zero where it is, as squaring does."""
    x = X
    maps = {}
    for rule in RULES:
        with torch.no_grad():
            torch.testing.assert_close(net(x), net.head(stage(net.conv2(stage(net.conv1(x) * 3)) * 3).flatten(1)))
        expected = by_hand(net, stage, x, rule)
        assert expected.abs().max() > 0
        found = ak.attribute(net, x, method=rule, target=1)
        assert (found.values - expected).abs().max() <= tolerance * expected.abs().max(), rule
        kinds = found.coverage.kinds
        assert kinds.get("rectifier") == ((count, count) if rule != "gradient" else (0, count)), kinds
        maps[rule] = expected
    assert (maps["gradient"] - maps["guided_backprop"]).abs().max() > 1e-3 * maps["gradient"].abs().max()
    if not masked:
        assert (maps["deconvnet"] - maps["guided_backprop"]).abs().max() > 1e-3 * maps["deconvnet"].abs().max()


@pytest.mark.parametrize(("name", "index"), CASES, ids=[f"{name}-{index}" for name, index in CASES])
def test_every_writing_follows_the_formula(name, index):
    agree(Net(WRITINGS[name][index]), Stage(SIGMA[name]), 2)


def test_the_table_above_leaves_out_no_class():
    """A new activation class of timm or torch must be decided on: a rectifier above, a gate below, or neither here."""
    tried = {type(w) for writings in WRITINGS.values() for w in writings} | {type(make()) for make in GATES.values()}
    neither = {"Identity", "Threshold", "Hardshrink", "Softshrink", "MultiheadAttention", "Softmax2d"}
    for module in (activations, activations_me):
        known = {c for c in vars(module).values() if isinstance(c, type) and issubclass(c, nn.Module)}
        assert not {c.__name__ for c in known - tried if c.__module__ == module.__name__}
    known = {c for name in nn.modules.activation.__all__ if isinstance(c := getattr(nn, name), type)}
    assert not {c.__name__ for c in known - tried} - neither


# -- classes that call a rectifier themselves ------------------------------------------------------------------------

FUSED = fused()


@pytest.mark.parametrize("name", FUSED)
def test_classes_that_call_a_rectifier(name):
    """The inner call is the rectifier; what is around it is ordinary."""
    make, before, sigma, after, tolerance = FUSED[name]
    module = make().double().eval()
    stage = Stage(SIGMA[sigma] if sigma else None, partial(before, module), partial(after, module))
    net = Net(module)
    if sigma:
        agree(net, stage, 2, tolerance, masked="Squared" in name or "Star" in name)
        return
    with pytest.warns(ak.CoverageWarning):
        found = ak.attribute(net, X, method="guided_backprop", target=1)
    expected = by_hand(net, stage, X, "gradient")
    assert (found.values - expected).abs().max() <= tolerance * expected.abs().max()
    # not a rectifier of any kind, so every operation that is not linear must be listed
    assert any(path.startswith("act1.") for path, _ in found.coverage.left), found.coverage.left


# -- gates -----------------------------------------------------------------------------------------------------------

GATES = {
    "Sigmoid": nn.Sigmoid,
    "Hardsigmoid": nn.Hardsigmoid,
    "Hardsigmoid in place": lambda: nn.Hardsigmoid(inplace=True),
    "Tanh": nn.Tanh,
    "Softmax": lambda: nn.Softmax(1),
    "LogSoftmax": lambda: nn.LogSoftmax(1),
    "Softmin": lambda: nn.Softmin(1),
    "Hardtanh(-1, 1)": nn.Hardtanh,
    "LogSigmoid": nn.LogSigmoid,
    "Softsign": nn.Softsign,
    "Tanhshrink": nn.Tanhshrink,
    "GLU": lambda: nn.GLU(1),
    "timm Sigmoid": activations.Sigmoid,
    "timm Sigmoid in place": lambda: activations.Sigmoid(inplace=True),
    "timm Tanh": activations.Tanh,
    "timm HardSigmoid": activations.HardSigmoid,  # calls F.relu6
    "timm HardSigmoid in place": lambda: activations.HardSigmoid(inplace=True),
    "timm HardSigmoidMe": activations_me.HardSigmoidMe,
}
FUNCTIONS = {
    "torch.sigmoid": torch.sigmoid,
    "Tensor.sigmoid_": lambda x: x.sigmoid_(),
    "F.hardsigmoid": F.hardsigmoid,
    "F.hardsigmoid in place": partial(F.hardsigmoid, inplace=True),
    "F.tanh": torch.nn.functional.tanh,
    "Tensor.tanh_": lambda x: x.tanh_(),
    "F.softmax": partial(F.softmax, dim=1),
    "F.hardtanh": F.hardtanh,
}


class Gated(nn.Module):
    """A gate behind a convolution, and a rectifier behind that."""

    def __init__(self, gate):
        super().__init__()
        torch.manual_seed(12)
        self.conv, self.relu, self.head = nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 1)
        self.gate = gate
        self.mix = nn.Conv2d(3 if isinstance(gate, nn.GLU) else 6, 6, 1)
        self.double().eval()

    def forward(self, x):
        return self.head(self.relu(self.mix(self.gate(self.conv(x))))).mean((2, 3))


@pytest.mark.parametrize("name", [*GATES, *FUNCTIONS])
def test_gates_are_never_rectified(name):
    gate = GATES[name]() if name in GATES else FUNCTIONS[name]
    net = Gated(gate)
    for rule in ("guided_backprop", "deconvnet"):
        found = ak.attribute(net, X, method=rule, target=1)
        assert (found.coverage.rewritten, found.coverage.gates, found.coverage.plain) == (1, 1, 0)
        before = net.conv(X).detach()
        mixed = net.mix(gate(before.clone())).detach()
        signal = (net.head.weight[1] / 25).expand(2, 6, 1, 1).expand_as(mixed).clamp(min=0)
        signal = F.conv_transpose2d(signal * (mixed > 0) if rule == "guided_backprop" else signal, net.mix.weight)
        expected = F.conv_transpose2d(pull(lambda z: gate(z.clone()), before, signal), net.conv.weight)
        assert expected.abs().max() > 0
        torch.testing.assert_close(found.values, expected, rtol=1e-9, atol=1e-12)
    inspection = ak.inspect(net, X, method="deconvnet")
    (gates,) = [site for site in inspection.sites if site.kind == "gate"]
    assert "gate" in inspection.outcome(gates)


class Inline(nn.Module):
    def __init__(self, inline):
        super().__init__()
        torch.manual_seed(6)
        self.conv, self.relu, self.head = nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 1)
        self.inline = inline
        self.double().eval()

    def forward(self, x):
        return self.head(self.relu(self.inline(self.conv(x)) - 0.1)).mean((2, 3))


@pytest.mark.parametrize(
    ("inline", "listed"),
    [
        (lambda x: x * torch.sigmoid(x), {"sigmoid", "mul"}),
        (lambda x: x * F.hardsigmoid(x), {"hardsigmoid", "mul"}),
        (lambda x: x.mul(F.softplus(x).tanh()), {"tanh", "mul"}),
        (lambda x: x.clamp(min=0), {"clamp"}),
        (lambda x: torch.maximum(x, 0.3 * x), {"maximum"}),
        (lambda x: torch.where(x > 0, x, 0.3 * x), {"where"}),
        (activations.swish, {"sigmoid", "mul"}),
    ],
)
def test_activations_written_inline_stay_plain_and_are_listed(inline, listed):
    net = Inline(inline)
    found = ak.attribute(net, X, method="guided_backprop", target=2)
    assert listed <= dict(found.coverage.left).keys()
    assert all(found.coverage.left)
    inspection = ak.inspect(net, X, method="guided_backprop")
    assert listed <= {site.name for site in inspection.sites}
    for name in listed:
        assert inspection.outcome(inspection[name]).startswith("plain: ")
