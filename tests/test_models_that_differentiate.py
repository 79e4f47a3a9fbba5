"""Models that differentiate on their way up: what they compute there is theirs, whatever the method attaches."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import attribkit as ak

pytestmark = pytest.mark.usefixtures("one_thread")

X = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
METHODS = ("gradient", "guided_backprop", "deconvnet")


class Differentiates(nn.Module):
    """Weighs its features by a gradient of rectified ones, detached from the way to the scores or not."""

    def __init__(self, way):
        super().__init__()
        torch.manual_seed(0)
        self.way = way
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, 5)

    def inner(self, z):
        return F.relu(z).pow(2).sum() - F.silu(z).sum()

    def weights(self, z):
        if self.way == "torch.func":
            return torch.func.grad(self.inner)(z)
        with torch.enable_grad():
            if self.way == "detached":
                z = z.detach().requires_grad_()
            elif not z.requires_grad:
                z.requires_grad_()
            if self.way == "backward":
                z = z.detach().requires_grad_()
                self.inner(z).backward()
                return z.grad
            return torch.autograd.grad(self.inner(z), z, create_graph=self.way == "second order")[0]

    def forward(self, x):
        features = self.conv(x)
        return self.head((features * self.weights(features)).mean((2, 3)))


WAYS = ["detached", "backward", "first order", "second order", "torch.func"]


def model_of(way):
    return Differentiates(way).double().eval()


@pytest.mark.filterwarnings("ignore::attribkit.CoverageWarning")
@pytest.mark.parametrize("method", [*METHODS, "occlusion"])
@pytest.mark.parametrize("way", WAYS)
def test_the_scores_are_the_models_own(way, method):
    model = model_of(way)
    expected = model(X.clone()).detach()
    found = ak.attribute(model, X, method, 1)
    torch.testing.assert_close(found.scores, expected[:, 1], rtol=1e-12, atol=1e-12)
    assert torch.equal(ak.attribute(model, X, method).target, expected.argmax(1))


@pytest.mark.parametrize("way", WAYS)
def test_the_gradient_is_autograds(way):
    model, x = model_of(way), X.clone().requires_grad_()
    (expected,) = torch.autograd.grad(model(x)[:, 1].sum(), x)
    assert expected.any()
    torch.testing.assert_close(ak.attribute(model, X, "gradient", 1).values, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("method", ["guided_backprop", "deconvnet"])
@pytest.mark.parametrize("way", ["detached", "backward", "first order"])
def test_no_rectifier_on_the_way_back_is_no_rectifier_rewritten(way, method):
    """The rectifiers serve the model's own derivative only: the map is the plain gradient."""
    model, x = model_of(way), X.clone().requires_grad_()
    (expected,) = torch.autograd.grad(model(x)[:, 1].sum(), x)
    torch.testing.assert_close(ak.attribute(model, X, method, 1).values, expected, rtol=1e-12, atol=1e-14)


def test_what_torch_func_transforms_is_said_to_be_left():
    with pytest.warns(ak.CoverageWarning):
        found = ak.attribute(model_of("torch.func"), X, "guided_backprop", 1)
    left = [name for name, why in found.coverage.left if "inside a transform of torch.func" in why]
    assert left == ["relu", "pow", "silu"]


@pytest.mark.parametrize("way", WAYS)
def test_units_below_what_is_differentiated(way):
    model = model_of(way)
    for method in METHODS:
        found = ak.project(model, X, "conv", [0, 2], method)
        for number, channel in enumerate((0, 2)):
            one = ak.attribute(model, X, method, ak.Unit("conv", channel))
            torch.testing.assert_close(found.values[:, number], one.values, rtol=1e-12, atol=1e-14)
            assert one.values.any()


@pytest.mark.parametrize("method", METHODS)
def test_a_unit_in_the_midst_of_what_is_differentiated(method):
    """The model goes on after the unit, without gradients that it counts on."""

    class Within(Differentiates):
        def forward(self, x):
            with torch.enable_grad():
                features = self.conv(x)
                inputs = features if features.requires_grad else features.requires_grad_()
                (weights,) = torch.autograd.grad(self.inner(inputs), inputs)
            return self.head((features * weights).mean((2, 3)))

    model, unit = Within("").double().eval(), ak.Unit("conv", 2, (4, 4))
    plain = nn.Sequential(OrderedDict(conv=model.conv, relu=nn.ReLU())).eval()
    expected = ak.attribute(plain, X, method, unit).values
    assert expected.any()
    torch.testing.assert_close(ak.attribute(model, X, method, unit).values, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("way", WAYS)
def test_inspecting(way):
    names = [site.name for site in ak.inspect(model_of(way), X, "guided_backprop").sites]
    assert [name for name in names if name in ("conv", "relu", "silu", "head")] == ["conv", "relu", "silu", "head"]


def test_a_method_may_use_torch_func():
    class Gradient(ak.Method):
        name, summary = "func-gradient", "The gradient by torch.func."

        def attribute(self, model, inputs, target):
            return torch.func.grad(lambda x: target.scores(model, x).sum())(inputs.detach())

    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(196, 5)).double().eval()
    expected = ak.attribute(model, X, "gradient", 1).values
    torch.testing.assert_close(ak.attribute(model, X, Gradient, 1).values, expected, rtol=1e-12, atol=1e-14)
