"""The gradient methods on real architectures, in float64, against autograd, the oracle and Captum."""

from __future__ import annotations

import copy
import warnings

import captum.attr
import oracle
import pytest
import torch
import torchvision
from torch import nn

import attribkit as ak

pytestmark = pytest.mark.usefixtures("one_thread")

NETS = {
    "alexnet": (lambda: torchvision.models.alexnet(num_classes=10), (96, 80)),
    "vgg11": (lambda: torchvision.models.vgg11(num_classes=10), (64, 64)),
    "resnet18": (lambda: torchvision.models.resnet18(num_classes=10), (64, 72)),
    "densenet121": (lambda: torchvision.models.densenet121(num_classes=10), (64, 64)),
    "googlenet": (lambda: torchvision.models.googlenet(num_classes=10, init_weights=False), (64, 96)),
    "googlenet without aux": (
        lambda: torchvision.models.googlenet(num_classes=10, aux_logits=False, init_weights=False),
        (64, 64),
    ),
}
RECTIFIERS = {
    "alexnet": 7,
    "vgg11": 10,
    "resnet18": 17,
    "densenet121": 121,
    "googlenet": 57,
    "googlenet without aux": 57,
}
UNITS = {
    "alexnet": [("features.2", 5), ("features.8", 200), ("classifier.5", 17)],  # a pool, a convolution, a ReLU
    "vgg11": [("features.10", 40), ("features.4", 3)],
    "resnet18": [("layer2.0.bn2", 9), ("layer3", 100), ("conv1", 1)],
    "densenet121": [("features.denseblock2.denselayer3.conv1", 77), ("features.transition1.pool", 30)],
    "googlenet": [("inception4a", 300), ("conv2.bn", 11)],
    "googlenet without aux": [("maxpool3", 123)],
}
ONLY_RELU_MODULES = ("alexnet", "vgg11", "resnet18")
TOLERANCE = 1e-10


class Case:
    def __init__(self, name):
        factory, (height, width) = NETS[name]
        torch.manual_seed(0)
        self.name, self.model = name, factory().double().eval()
        for module in self.model.modules():
            if isinstance(module, nn.BatchNorm2d):  # as after training: statistics and scales of either sign
                nn.init.normal_(module.running_mean, std=0.1)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
                nn.init.uniform_(module.weight, 0.5, 1.5)
                module.weight.data[::7] *= -1
                nn.init.normal_(module.bias, std=0.1)
        self.x = torch.randn(2, 3, height, width, dtype=torch.float64)
        self.classes = torch.tensor([7, 2])


@pytest.fixture(scope="module", params=NETS)
def case(request):
    return Case(request.param)


def assert_agree(values, reference, tolerance=TOLERANCE):
    assert values.dtype == reference.dtype == torch.float64
    assert values.shape == reference.shape
    for sample, expected in zip(values, reference, strict=True):  # a large sample must not hide a small one
        assert torch.isfinite(expected).all()
        assert expected.abs().max() > 0, "a reference of zeros compares nothing"
        assert (expected != 0).double().mean() > 0.05, "a reference almost of zeros compares little"
        assert (sample - expected).abs().max() <= tolerance * expected.abs().max()


def test_gradient_is_exactly_autograd(case):
    x = case.x.clone().requires_grad_()
    scores = case.model(x)
    (expected,) = torch.autograd.grad(scores[torch.arange(2), case.classes].sum(), x)
    found = ak.attribute(case.model, case.x, method="gradient", target=case.classes)
    assert expected.abs().max() > 0
    assert torch.equal(found.values, expected)
    assert torch.equal(found.scores, scores.detach()[torch.arange(2), case.classes])


def test_gradient_of_the_strongest_class_is_exactly_autograd(case):
    x = case.x.clone().requires_grad_()
    best = case.model(x).max(1)
    (expected,) = torch.autograd.grad(best.values.sum(), x)
    found = ak.attribute(case.model, case.x, method="gradient")
    assert torch.equal(found.values, expected)
    assert torch.equal(torch.as_tensor(found.target), best.indices)


@pytest.mark.parametrize("method", oracle.METHODS)
def test_class_scores_equal_the_oracle(case, method):
    reference = oracle.explain(case.model, case.x, method, case.classes)
    assert reference.rectifiers == RECTIFIERS[case.name]
    assert_agree(ak.attribute(case.model, case.x, method=method, target=case.classes).values, reference.values)


def test_guided_backprop_rewrites_every_rectifier(case):
    found = ak.attribute(case.model, case.x, method="guided_backprop", target=case.classes)
    assert found.coverage.rewritten == RECTIFIERS[case.name]
    plain = ak.attribute(case.model, case.x, method="gradient", target=case.classes)
    assert (found.values - plain.values).abs().max() > 0.1 * plain.values.abs().max()


@pytest.mark.parametrize("method", oracle.METHODS)
def test_units_equal_the_oracle(case, method):
    for layer, channel in UNITS[case.name]:
        layout = "NC" if layer.startswith("classifier") else "NCHW"
        for position in ("max", "all"):
            if layout == "NC" and position == "all":
                continue
            reference = oracle.explain(case.model, case.x, method, oracle.Place(layer, channel, position, layout))
            unit = ak.Unit(layer=layer, channel=channel, position=position)
            found = ak.attribute(case.model, case.x, method=method, target=unit)
            torch.testing.assert_close(found.scores, reference.scores, rtol=1e-12, atol=0)
            expected = reference.values
            if not expected.any():  # a dead unit
                pytest.fail(f"{layer}, channel {channel} is dead: choose another")
            assert (found.values - expected).abs().max() <= TOLERANCE * expected.abs().max(), (layer, position)


@pytest.mark.parametrize("case", ONLY_RELU_MODULES, indirect=True)  # others have functional ReLUs: plain to Captum
@pytest.mark.parametrize(
    ("method", "peer"),
    [("guided_backprop", captum.attr.GuidedBackprop), ("deconvnet", captum.attr.Deconvolution)],
)
def test_equals_captum_where_every_rectifier_is_a_module(case, method, peer):
    theirs = copy.deepcopy(case.model)
    for module in theirs.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False  # Captum cannot hook the others
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = peer(theirs).attribute(case.x.clone(), target=case.classes).detach()
    assert_agree(ak.attribute(case.model, case.x, method=method, target=case.classes).values, reference)


def test_callable_targets_equal_the_oracle(case):
    """A callable target starts from its own derivative: here twice one class minus another."""

    def difference(outputs):
        return 2 * outputs[:, 1] - outputs[:, 4]

    for method in oracle.METHODS:
        reference = oracle.explain(case.model, case.x, method, difference)
        found = ak.attribute(case.model, case.x, method=method, target=difference)
        assert_agree(found.values, reference.values)
        torch.testing.assert_close(found.scores, reference.scores, rtol=1e-12, atol=0)
