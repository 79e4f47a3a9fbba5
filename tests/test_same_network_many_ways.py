"""The same network written several ways is the same network; its sites are named as documented."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from timm.layers import activations
from torch import nn

import attribkit as ak

pytestmark = pytest.mark.usefixtures("one_thread")

METHODS = ("gradient", "guided_backprop", "deconvnet", "occlusion")
OPTIONS = {"occlusion": {"window": 4, "stride": 3}}


class Network(nn.Module):
    """Two convolutions, a skip branch, a pool, and a hidden layer whose input is a view; ``acts`` are its five
    activations. Every value that is overwritten in place is used nowhere else.
    """

    def __init__(self, acts, modules=()):
        super().__init__()
        torch.manual_seed(7)
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1)
        self.conv3 = nn.Conv2d(6, 4, 2, stride=2)
        self.fc1 = nn.Linear(36, 10)
        self.fc2 = nn.Linear(10, 5)
        nn.init.uniform_(self.bn1.running_var, 0.5, 2)
        for name, module in modules:
            self.add_module(name, module)
        self.acts = acts

    def forward(self, x):
        act1, act2, act3, act4, act5 = self.acts
        x = act1(self.bn1(self.conv1(x)))
        x = act2(self.conv2(x) + x)
        x = F.max_pool2d(x, 3, 2, 1)
        x = act3(self.conv3(x).flatten(1))  # in place on a view
        x = act4(self.fc1(x))
        return self.fc2(act5(x * 0.5 - 0.1).view(len(x), -1))


def modules(make):
    made = [make() for _ in range(5)]
    return Network(made, [(f"act{index}", module) for index, module in enumerate(made)])


def one_module(make):
    made = make()
    return Network([made] * 5, [("act", made)])


def mixed():
    module = nn.ReLU(inplace=True)
    acts = [module, F.relu, lambda x: x.relu_(), module, lambda x: F.relu(x, inplace=True)]
    return Network(acts, [("act", module)])


WRITINGS = {
    "modules": lambda: modules(nn.ReLU),
    "in place": lambda: modules(lambda: nn.ReLU(inplace=True)),
    "one reused module": lambda: one_module(nn.ReLU),
    "one reused module in place": lambda: one_module(lambda: nn.ReLU(inplace=True)),
    "F.relu": lambda: Network([F.relu] * 5),
    "F.relu in place": lambda: Network([lambda x: F.relu(x, inplace=True)] * 5),
    "torch.relu": lambda: Network([torch.relu] * 5),
    "torch.relu_": lambda: Network([torch.relu_] * 5),
    "F.relu_": lambda: Network([F.relu_] * 5),
    "Tensor.relu": lambda: Network([lambda x: x.relu()] * 5),
    "Tensor.relu_": lambda: Network([lambda x: x.relu_()] * 5),
    "mixed": mixed,
}
PAIRS = {  # the same function as a module, a module in place, a function, and a function in place
    "relu6": (nn.ReLU6, lambda: nn.ReLU6(inplace=True), F.relu6, lambda x: F.relu6(x, inplace=True)),
    "hardtanh": (
        lambda: nn.Hardtanh(0.0, 0.4),
        lambda: nn.Hardtanh(0.0, 0.4, inplace=True),
        lambda x: F.hardtanh(x, 0.0, 0.4),
        lambda x: F.hardtanh_(x, 0.0, 0.4),
    ),
    "leaky_relu": (nn.LeakyReLU, lambda: nn.LeakyReLU(inplace=True), F.leaky_relu, F.leaky_relu_),
    "rrelu": (nn.RReLU, lambda: nn.RReLU(inplace=True), F.rrelu, F.rrelu_),
    "elu": (nn.ELU, lambda: nn.ELU(inplace=True), F.elu, F.elu_),
    "selu": (nn.SELU, lambda: nn.SELU(inplace=True), torch.selu, torch.selu_),
    "celu": (nn.CELU, lambda: nn.CELU(inplace=True), torch.celu, torch.celu_),
    "silu": (nn.SiLU, lambda: nn.SiLU(inplace=True), F.silu, lambda x: F.silu(x, inplace=True)),
    "mish": (nn.Mish, lambda: nn.Mish(inplace=True), F.mish, lambda x: F.mish(x, inplace=True)),
    "hardswish": (
        nn.Hardswish,
        lambda: nn.Hardswish(inplace=True),
        F.hardswish,
        lambda x: F.hardswish(x, inplace=True),
    ),
    "gelu": (nn.GELU, activations.GELU, F.gelu, F.gelu),
    "softplus": (nn.Softplus, nn.Softplus, F.softplus, F.softplus),
    "timm swish": (activations.Swish, lambda: activations.Swish(inplace=True)),
}
# In place, torch computes these derivatives from the result instead of the input, and rounds otherwise.
ROUNDED = {"elu", "selu", "celu"}


def image():
    return torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def explain(net, method, target=3):
    return ak.attribute(net.double().eval(), image(), method=method, target=target, **OPTIONS.get(method, {}))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("writing", WRITINGS)
def test_relu_maps_are_bit_identical(writing, method):
    expected, found = explain(WRITINGS["modules"](), method), explain(WRITINGS[writing](), method)
    assert expected.values.any()
    assert torch.equal(found.values, expected.values)
    assert torch.equal(found.scores, expected.scores)
    assert found.coverage.rewritten == expected.coverage.rewritten


def test_the_methods_tell_the_network_apart():
    """What makes the test above mean something: every method gives another map."""
    maps = [explain(WRITINGS["modules"](), method).values for method in METHODS]
    for index, one in enumerate(maps):
        for other in maps[:index]:
            assert (one - other).abs().max() > 1e-3 * one.abs().max()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("function", PAIRS)
def test_other_rectifiers_are_bit_identical(function, method):
    module, in_place, *calls = PAIRS[function]
    writings = [modules(module), modules(in_place), one_module(in_place), *(Network([call] * 5) for call in calls)]
    found = [explain(net, method) for net in writings]
    expected = found[0].values
    assert expected.any()
    for other in found[1:]:
        if function in ROUNDED:
            assert (other.values - expected).abs().max() <= 1e-14 * expected.abs().max()
        else:
            assert torch.equal(other.values, expected)
    if method == "guided_backprop":
        assert [each.coverage.rewritten for each in found] == [5] * len(writings)


@pytest.mark.parametrize("method", METHODS)
def test_units_at_modules_and_at_functional_calls_are_the_same(method):
    written = [
        (WRITINGS["modules"](), ("act0", "act1", "act4")),
        (WRITINGS["one reused module in place"](), ("act", "act_1", "act_4")),
        (WRITINGS["F.relu"](), ("relu", "relu_1", "relu_4")),
        (WRITINGS["Tensor.relu_"](), ("relu", "relu_1", "relu_4")),
    ]
    for index in range(3):
        found = [explain(net, method, ak.Unit(names[index], 2)) for net, names in written]
        assert found[0].values.any()
        for other in found[1:]:
            assert torch.equal(other.values, found[0].values)
            assert torch.equal(other.scores, found[0].scores)


def names(net, kinds, size=12):
    x = torch.zeros(1, 3, size, size, dtype=next(net.parameters()).dtype)
    return [(site.name, site.kind) for site in ak.inspect(net.eval(), x).sites if site.kind in kinds]


def test_modules_bear_their_paths_in_order_of_execution():
    net = nn.Sequential()
    net.add_module("late", nn.Linear(6, 2))  # registered first, called last

    class Body(nn.Module):
        def __init__(self):
            super().__init__()
            self.relu = nn.ReLU()
            self.pool = nn.AdaptiveMaxPool2d(1)
            self.conv = nn.Conv2d(3, 6, 3)
            self.bn = nn.BatchNorm2d(6)
            self.late = nn.Linear(6, 2)

        def forward(self, x):
            return self.late(self.pool(self.relu(self.bn(self.conv(x)))).flatten(1))

    net = nn.Sequential()
    net.add_module("body", Body())
    assert names(net, {"conv", "linear", "rectifier", "max_pool", "batch_norm"}) == [
        ("body.conv", "conv"),
        ("body.bn", "batch_norm"),
        ("body.relu", "rectifier"),
        ("body.pool", "max_pool"),
        ("body.late", "linear"),
    ]


@pytest.mark.parametrize(
    ("writing", "expected"),
    [
        ("modules", ["act0", "act1", "act2", "act3", "act4"]),
        ("one reused module", ["act", "act_1", "act_2", "act_3", "act_4"]),
        ("F.relu", ["relu", "relu_1", "relu_2", "relu_3", "relu_4"]),
        ("Tensor.relu_", ["relu", "relu_1", "relu_2", "relu_3", "relu_4"]),
        ("mixed", ["act", "relu", "relu_1", "act_1", "relu_2"]),
    ],
)
def test_reused_modules_and_functional_calls_are_numbered(writing, expected):
    assert names(WRITINGS[writing](), {"rectifier"}) == [(name, "rectifier") for name in expected]


class Features(nn.Module):
    """Functional calls within a parent, with or without modules of the same names."""

    def __init__(self, **children):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        for name, child in children.items():
            self.add_module(name, child)

    def forward(self, x):
        x = F.relu(self.conv(x))
        if hasattr(self, "relu"):
            x = self.relu(x)
        x = F.max_pool2d(F.relu_(x), 2)
        if hasattr(self, "relu_1"):
            x = self.relu_1(x)
        return x.relu()


class Whole(nn.Module):
    def __init__(self, **children):
        super().__init__()
        self.features = Features(**children)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return torch.sigmoid(self.head(F.relu(self.features(x)).mean((2, 3))))


@pytest.mark.parametrize(
    ("children", "expected"),
    [
        ((), ["features.relu", "features.relu_1", "features.relu_2", "relu"]),
        # A module's path is its own, also when the functional call comes first.
        (("relu",), ["features.relu_1", "features.relu", "features.relu_2", "features.relu_3", "relu"]),
        (("relu_1",), ["features.relu", "features.relu_2", "features.relu_1", "features.relu_3", "relu"]),
        (
            ("relu", "relu_1"),
            ["features.relu_2", "features.relu", "features.relu_3", "features.relu_1", "features.relu_4", "relu"],
        ),
    ],
)
def test_functional_calls_bear_the_parents_path_and_avoid_modules(children, expected):
    net = Whole(**{name: nn.ReLU() for name in children})
    assert names(net, {"rectifier"}) == [(name, "rectifier") for name in expected]
    assert names(net, {"max_pool"}) == [("features.max_pool2d", "max_pool")]
    assert names(net, {"gate"}) == [("sigmoid", "gate")]


def test_a_reused_modules_suffix_avoids_a_modules_path():
    class Reused(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 3)
            self.relu, self.relu_1 = nn.ReLU(), nn.ReLU()

        def forward(self, x):
            return self.relu_1(self.relu(self.relu(self.conv(x)))).mean((2, 3))

    assert names(Reused(), {"rectifier"}) == [(name, "rectifier") for name in ("relu", "relu_2", "relu_1")]


def test_a_module_and_the_function_it_calls_are_one_site():
    net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU6(), nn.MaxPool2d(2), activations.HardSwish(), nn.Hardsigmoid())
    net.append(activations.HardSigmoid())
    net.append(activations.PReLU())
    assert names(net, {"conv", "rectifier", "max_pool", "gate", "product", "sum"}) == [
        ("0", "conv"),
        ("1", "rectifier"),
        ("2", "max_pool"),
        ("3", "rectifier"),
        ("4", "gate"),
        ("5", "gate"),
        ("6", "rectifier"),
    ]


def test_x_times_sigmoid_written_inline_is_listed_and_stays_plain():
    class Inline(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.relu = nn.Conv2d(3, 2, 3), nn.ReLU()

        def forward(self, x):
            x = self.conv(x)
            return self.relu(x * x.sigmoid()).mean((2, 3))

    net, x = Inline().double(), torch.randn(1, 3, 5, 5, dtype=torch.float64)
    assert names(net, {"gate", "product", "rectifier"}, 5) == [
        ("sigmoid", "gate"),
        ("mul", "product"),
        ("relu", "rectifier"),
    ]
    assert ak.attribute(net, x, method="guided_backprop", target=0).coverage.rewritten == 1


def test_the_table_shows_every_site():
    net = Whole(relu=nn.ReLU())
    inspection = ak.inspect(net, torch.zeros(1, 3, 8, 8), method="guided_backprop")
    table = str(inspection)
    for site in inspection.sites:
        if site.kind in {"conv", "linear", "rectifier", "max_pool", "gate"}:
            assert site.name in table
    assert inspection.coverage.rewritten == 5
