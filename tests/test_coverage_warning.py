"""A method that met nothing to rewrite says so; every other call is silent (warnings are errors in these tests)."""

from __future__ import annotations

import re
import warnings
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

import attribkit as ak
from attribkit.engine.layers import GatedRectify, Unpool
from attribkit.errors import CoverageError

pytestmark = pytest.mark.usefixtures("one_thread")
X = torch.randn(3, 3, 12, 12, generator=torch.Generator().manual_seed(0))
TABLES = ("guided_backprop", "deconvnet")
OPTIONS = {"occlusion": {"window": 6, "stride": 6}}


def net(*layers):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), *layers, nn.Conv2d(4, 2, 3), nn.Flatten(), nn.LazyLinear(5))


def made(*layers):
    built = net(*layers)
    built(X)
    return built.eval()


class Inline(nn.Module):
    """Activations that cannot be told from gates."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)

    def forward(self, x):
        x = self.conv(x)
        return self.head((x * torch.sigmoid(x)).clamp(min=0).mean((2, 3)))


NOTHING_TO_REWRITE = {
    "linear": made,
    "tanh": lambda: made(nn.Tanh()),
    "tanh and max pool": lambda: made(nn.Tanh(), nn.MaxPool2d(3, 2)),
    "max pool alone": lambda: made(nn.MaxPool2d(2)),
    "sigmoid": lambda: made(nn.Sigmoid(), nn.BatchNorm2d(4)),
    "hardtanh from -1": lambda: made(nn.Hardtanh()),
    "hardsigmoid": lambda: made(nn.Hardsigmoid()),
    "norms": lambda: made(nn.GroupNorm(2, 4), nn.AvgPool2d(2)),
    "written inline": Inline,
}
SOMETHING_TO_REWRITE = {
    "relu": lambda: made(nn.ReLU()),
    "one relu among gates": lambda: made(nn.Tanh(), nn.Sigmoid(), nn.ReLU(), nn.Tanh()),
    "gelu": lambda: made(nn.GELU()),
    "relu6 in place": lambda: made(nn.ReLU6(inplace=True)),
    "hardtanh from 0": lambda: made(nn.Hardtanh(0.0, 3.0)),
}


@pytest.mark.parametrize("method", TABLES)
@pytest.mark.parametrize("name", NOTHING_TO_REWRITE)
def test_nothing_to_rewrite_warns_once(name, method):
    model = NOTHING_TO_REWRITE[name]()
    for batch_size in (None, 1):
        with pytest.warns(ak.CoverageWarning) as caught:
            found = ak.attribute(model, X, method=method, batch_size=batch_size)
        (warning,) = caught
        message = str(warning.message)
        assert method in message
        assert "plain gradient" in message
        assert "\n" not in message
        assert warning.filename == __file__  # it points at the caller
        # and it is true
        assert found.values.any()
        gradient = ak.attribute(model, X, method="gradient")
        torch.testing.assert_close(found.values, gradient.values, rtol=1e-5, atol=1e-7)
        assert "plain gradient" in found.coverage.sentence


@pytest.mark.parametrize("method", TABLES)
@pytest.mark.parametrize("name", NOTHING_TO_REWRITE)
def test_nothing_to_rewrite_raises_when_strict(name, method):
    with pytest.raises(CoverageError, match=method) as caught:
        ak.attribute(NOTHING_TO_REWRITE[name](), X, method=method, strict=True)
    assert isinstance(caught.value, ak.AttribkitError)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", TABLES)
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", SOMETHING_TO_REWRITE)
def test_something_to_rewrite_is_silent(name, strict, method):
    model = SOMETHING_TO_REWRITE[name]()
    found = ak.attribute(model, X, method=method, strict=strict)
    assert found.coverage.rewritten >= 1
    assert "plain gradient" not in found.coverage.sentence


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("method", ["gradient", "occlusion"])
@pytest.mark.parametrize("name", [*NOTHING_TO_REWRITE, *SOMETHING_TO_REWRITE])
def test_methods_without_a_table_never_warn(name, method, strict):
    model = {**NOTHING_TO_REWRITE, **SOMETHING_TO_REWRITE}[name]()
    found = ak.attribute(model, X, method=method, strict=strict, **OPTIONS.get(method, {}))
    assert found.coverage.rewritten == 0
    assert found.coverage.sentence == f"{method} rewrites no operation."


# -- units -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("method", TABLES)
@pytest.mark.parametrize("layer", ["0", "1"])
def test_a_unit_below_the_first_rectifier_does_not_warn(layer, method, strict):
    """The method would have had something to rewrite; it lies above the unit."""
    model = made(nn.MaxPool2d(2), nn.Tanh(), nn.ReLU())
    target = ak.Unit(layer, 1)
    found = ak.attribute(model, X, method=method, target=target, strict=strict)
    assert found.values.any()
    many = ak.project(model, X, layer, [0, 1], method=method, strict=strict)
    torch.testing.assert_close(many.values[:, 1], found.values)


@pytest.mark.parametrize("method", TABLES)
def test_a_unit_of_a_model_without_rectifiers_warns(method):
    model = made(nn.MaxPool2d(2), nn.Tanh())
    for layer in ("0", "1", "2", "3"):
        with pytest.warns(ak.CoverageWarning, match=method):
            ak.attribute(model, X, method=method, target=ak.Unit(layer, 1))
        with pytest.warns(ak.CoverageWarning, match=method):
            ak.project(model, X, layer, [0, 1], method=method)
        with pytest.raises(CoverageError, match=method):
            ak.attribute(model, X, method=method, target=ak.Unit(layer, 1), strict=True)
        with pytest.raises(CoverageError, match=method):
            ak.project(model, X, layer, [0, 1], method=method, strict=True)


@pytest.mark.parametrize("method", TABLES)
def test_a_units_own_rectifier_counts(method):
    model = made(nn.ReLU())
    found = ak.attribute(model, X, method=method, target=ak.Unit("1", 2), strict=True)
    assert found.coverage.rewritten == 1


# -- targets, tables and methods of other kinds ----------------------------------------------------------------------


def test_a_callable_target_warns_alike():
    with pytest.warns(ak.CoverageWarning):
        ak.attribute(made(nn.Tanh()), X, method="guided_backprop", target=lambda scores: scores[:, 0] - scores[:, 1])
    ak.attribute(made(nn.ReLU()), X, method="guided_backprop", target=lambda scores: scores[:, 0], strict=True)


def test_contrast_normalisation_is_something_to_rewrite_for_deconvnet_alone():
    model = made(nn.Tanh(), nn.LocalResponseNorm(3, alpha=1.0))
    found = ak.attribute(model, X, method="deconvnet", strict=True)
    gradient = ak.attribute(model, X, method="gradient")
    assert (found.values - gradient.values).abs().max() > 1e-3 * gradient.values.abs().max()
    with pytest.warns(ak.CoverageWarning):
        ak.attribute(model, X, method="guided_backprop")


class ByName(ak.InverseMethod):
    name = "by_name"
    summary = "Rectifies the signal behind one layer"
    inverse_layers = {re.compile(r"[0-9]*act"): GatedRectify()}


class PoolsOnly(ak.InverseMethod):
    name = "pools_only"
    summary = "Unpools through the switches"
    inverse_layers = {"max_pool": Unpool()}


class Twice(ak.InverseMethod):
    name = "twice"
    summary = "The mean of two passes"
    inverse_layers = {"rectifier": GatedRectify()}

    def attribute(self, model, inputs, target):
        return (super().attribute(model, inputs, target) + super().attribute(model, inputs * 1.1, target)) / 2


class FreeForm(ak.Method):
    name = "free_form"
    summary = "The gradient, by hand"

    def attribute(self, model, inputs, target):
        x = inputs.detach().requires_grad_()
        return torch.autograd.grad(target.scores(model, x).sum(), x)[0]


class Empty(ak.InverseMethod):
    name = "empty"
    summary = "A table with nothing in it"


def test_a_table_of_names():
    named = nn.Sequential(OrderedDict(flat=nn.Flatten(), act=nn.Tanh(), head=nn.Linear(432, 5)))
    ak.attribute(named, X, method=ByName, strict=True)
    with pytest.warns(ak.CoverageWarning, match="by_name"):
        ak.attribute(made(nn.ReLU()), X, method=ByName)


def test_a_table_that_only_unpools():
    """Unpooling is the ordinary derivative by another route, but it is all that this method promises."""
    ak.attribute(made(nn.MaxPool2d(2)), X, method=PoolsOnly, strict=True)
    with pytest.warns(ak.CoverageWarning, match="pools_only"):
        ak.attribute(made(nn.ReLU()), X, method=PoolsOnly)


def test_a_method_of_several_passes_warns_once():
    with pytest.warns(ak.CoverageWarning) as caught:
        ak.attribute(made(nn.Tanh()), X, method=Twice)
    assert len(caught) == 1
    ak.attribute(made(nn.ReLU()), X, method=Twice, strict=True)


@pytest.mark.parametrize("method", [FreeForm, Empty])
def test_methods_with_nothing_to_promise_do_not_warn(method):
    for model in (made(nn.Tanh()), made(nn.ReLU())):
        ak.attribute(model, X, method=method, strict=True)


def tables(*keys):
    class Misnamed(ak.InverseMethod):
        name = "misnamed"
        summary = "A table with names that do not exist"
        inverse_layers = dict.fromkeys(keys, GatedRectify())

    return Misnamed


MISNAMED = {
    "a misspelt kind": (("rectifer",), "'rectifer' is no op kind, did you mean 'rectifier'?"),
    "the kind of one function": (("hardtanh",), "'hardtanh' is no op kind"),
    "a site as a string": (("1",), "'1' is the name of a site, not an op kind: write re.compile('1')"),
    "a site with a dot": (("features.1",), "; the name of a site is given as re.compile(...)"),
    "a function that is no operation": ((torch.fft.fft,), "fft> is no operation that the engine knows"),
}


@pytest.mark.parametrize(("keys", "words"), MISNAMED.values(), ids=MISNAMED)
@pytest.mark.parametrize("met", [True, False])
def test_a_table_that_names_what_does_not_exist(keys, words, met):
    """Also where the rest of the table is in use."""
    model = made(nn.ReLU())
    method = tables(*keys, "rectifier") if met else tables(*keys)
    calls = [
        lambda **more: ak.attribute(model, X, method=method, **more),
        lambda **more: ak.attribute(model, X, method=method, target=ak.Unit("1", 2), **more),
        lambda **more: ak.project(model, X, "1", [0, 1], method=method, **more),
    ]
    for call in calls:
        with pytest.warns(ak.CoverageWarning) as caught:
            call()
        (warning,) = caught
        message = str(warning.message)
        assert words in message
        assert message.startswith("misnamed ")
        assert "\n" not in message
        assert warning.filename == __file__
        with pytest.raises(CoverageError, match=re.escape(words)):
            call(strict=True)
    with pytest.warns(ak.CoverageWarning) as caught:
        calls[0]()
    assert ("plain gradient" in str(caught[0].message)) != met


@pytest.mark.parametrize("key", ["rectifier", "other", "max_pool", F.relu, torch.sigmoid, nn.ReLU, re.compile("[a-z]")])
def test_what_exists_is_not_told_of(key):
    ak.attribute(made(nn.ReLU()), X, method=tables("rectifier", key), strict=True)


def test_inspect_does_not_warn():
    inspection = ak.inspect(made(nn.Tanh()), X, method="deconvnet")
    assert inspection.coverage.rewritten == 0
    assert "plain gradient" in inspection.coverage.sentence


def test_one_call_does_not_silence_the_next():
    model = made(nn.Tanh())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ak.attribute(model, X, method="guided_backprop")
        ak.attribute(model, X, method="gradient")
        ak.attribute(made(nn.ReLU()), X, method="guided_backprop")
        ak.attribute(model, X, method="deconvnet")
    assert [str(w.message).split()[0] for w in caught] == ["guided_backprop", "deconvnet"]


@pytest.mark.parametrize("name", ["resnet18", "alexnet", "mobilenet_v2", "googlenet", "squeezenet1_1"])
def test_ordinary_networks_are_silent(name):
    weights = {"init_weights": False, "aux_logits": False} if name == "googlenet" else {}
    model = torchvision.models.get_model(name, num_classes=5, **weights).eval()
    x = F.interpolate(X[:1], 64)
    for method in TABLES:
        found = ak.attribute(model, x, method=method, strict=True)
        assert found.coverage.kinds["rectifier"][0] == found.coverage.kinds["rectifier"][1] > 0
