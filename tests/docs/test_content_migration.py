"""Every row of docs/migration.md: both sides are run on one network, and where the page says equal the numbers are."""

from __future__ import annotations

import copy
import importlib
import warnings
from pathlib import Path

import captum.attr
import pytest
import torch
import torch.nn.functional as F
from test_content_equations import random
from torch import nn
from zennit import composites
from zennit.attribution import Gradient, IntegratedGradients, SmoothGrad
from zennit.composites import DeconvNet, GuidedBackprop
from zennit.rules import Epsilon, Norm, Pass
from zennit.types import AvgPool, Linear

import attribkit as ak

CLASSES = torch.tensor([1, 2])


class Net(nn.Module):
    """Rectifiers are modules, used once, not in place: what the other libraries see."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.relu1, self.pool1 = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
        self.conv2, self.relu2 = nn.Conv2d(4, 5, 3), nn.ReLU()
        self.fc = nn.Linear(5 * 4 * 4, 3)

    def features(self, x):
        return self.relu2(self.conv2(self.pool1(self.relu1(self.conv1(x)))))

    def forward(self, x):
        return self.fc(self.features(x).flatten(1))


class Functional(Net):
    """The same network, its second ReLU a function."""

    def features(self, x):
        return F.relu(self.conv2(self.pool1(self.relu1(self.conv1(x)))))


@pytest.fixture
def model():
    made = Net().double().eval()
    with torch.no_grad():
        for seed, parameter in enumerate(made.parameters()):
            parameter.copy_(random(*parameter.shape, seed=seed))
    return made


@pytest.fixture
def functional(model):
    made = Functional().double().eval()
    made.load_state_dict(model.state_dict())
    return made


@pytest.fixture
def x():
    return random(2, 3, 12, 12, seed=50)


@pytest.fixture
def shelf(monkeypatch):
    """Import from the shelf's sources, so that nothing need be installed."""

    def take(distribution, module):
        root = Path(__file__).parents[2] / "plugins" / f"attribkit-{distribution}" / "src"
        monkeypatch.syspath_prepend(str(root))
        return importlib.import_module(f"attribkit_{distribution}.{module}")

    return take


def captums(algorithm, model, x, **call):
    """Run one of Captum's; it warns of every hook it sets."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return algorithm(copy.deepcopy(model)).attribute(x.clone(), **call).detach()


def zennits(model, x, composite=None, attributor=Gradient, classes=CLASSES, **settings):
    one_hot = F.one_hot(classes, 3).to(x)
    with attributor(model=copy.deepcopy(model), composite=composite, **settings) as made:
        return made(x.clone(), one_hot)[1].detach()


def assert_equal(found, expected, tolerance=1e-12):
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    assert expected.abs().max() > 0
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


def assert_different(found, expected):
    assert (found - expected).abs().max() > 0.01 * expected.abs().max()


# -- Captum ------------------------------------------------------------------------------------------------------------


def test_saliency_is_the_gradients_absolute_value(model, x):
    found = ak.attribute(model, x, "gradient", CLASSES).values
    assert_equal(found.abs(), captums(captum.attr.Saliency, model, x, target=CLASSES))
    assert_equal(found, captums(captum.attr.Saliency, model, x, target=CLASSES, abs=False))
    assert (found < 0).any()


def test_guided_backprop_and_deconvolution(model, x):
    for name, theirs in (
        ("guided_backprop", captum.attr.GuidedBackprop),
        ("deconvnet", captum.attr.Deconvolution),
    ):
        assert_equal(ak.attribute(model, x, name, CLASSES).values, captums(theirs, model, x, target=CLASSES))


def test_functional_relus_are_ignored_by_captum_and_zennit_without_a_word(model, functional, x):
    for name, theirs, composite in (
        ("guided_backprop", captum.attr.GuidedBackprop, GuidedBackprop()),
        ("deconvnet", captum.attr.Deconvolution, DeconvNet()),
    ):
        ours = ak.attribute(functional, x, name, CLASSES)
        assert ours.coverage.rewritten == 2 + (name == "deconvnet")  # and the pool
        assert_equal(ours.values, ak.attribute(model, x, name, CLASSES).values)
        assert_different(captums(theirs, functional, x, target=CLASSES), ours.values)
        assert_different(zennits(functional, x, composite), ours.values)


def test_neuron_methods_are_units(model, x):
    """Captum's neuron is (channel, row, column) of the layer; the deconvnet's signal starts as its activation."""
    output = model.conv2(model.pool1(model.relu1(model.conv1(x)))).detach()
    neuron = next(tuple(place) for place in output[0].nonzero().tolist() if output[(0, *place)] > 0)
    unit, activation = ak.Unit("conv2", neuron[0], neuron[1:]), output[(slice(None), *neuron)]

    def theirs(algorithm):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            network = copy.deepcopy(model)
            return algorithm(network, network.conv2).attribute(x.clone(), neuron_selector=neuron).detach()

    assert_equal(ak.attribute(model, x, "gradient", unit).values, theirs(captum.attr.NeuronGradient))
    assert_equal(ak.attribute(model, x, "guided_backprop", unit).values, theirs(captum.attr.NeuronGuidedBackprop))
    # max(a·R, 0) = a·max(R, 0) for a > 0: times the activation; where it is negative, the deconvnet's signal is another
    ours = ak.attribute(model, x, "deconvnet", unit).values
    deconvolution = theirs(captum.attr.NeuronDeconvolution)
    assert (activation > 0).any()
    for sample in (activation > 0).nonzero()[:, 0]:
        assert_equal(ours[sample], activation[sample] * deconvolution[sample])


@pytest.mark.parametrize(("window", "stride", "fill"), [((4, 3), (2, 2), 0.0), ((5, 5), (3, 2), 0.7)])
def test_occlusion(model, x, window, stride, fill):
    call = {"sliding_window_shapes": (3, *window), "strides": (3, *stride), "baselines": fill, "target": CLASSES}
    theirs = captums(captum.attr.Occlusion, model.float(), x.float(), **call)
    found = ak.attribute(model, x.float(), "occlusion", CLASSES, window=window, stride=stride, fill=fill).values
    assert_equal(found, theirs, 1e-5)  # Captum sums in float32


def test_captums_perturbations_per_eval_is_found_here_by_itself(model, x):
    call = {"sliding_window_shapes": (3, 4, 4), "strides": (3, 2, 2), "target": CLASSES}
    one = captums(captum.attr.Occlusion, model.float(), x.float(), **call)
    many = captums(captum.attr.Occlusion, model.float(), x.float(), perturbations_per_eval=8, **call)
    assert_equal(many, one, 1e-5)
    assert_equal(ak.attribute(model, x.float(), "occlusion", CLASSES, window=4, stride=2).values, one, 1e-5)


def test_forward_arguments(x):
    class Weighted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()

        def forward(self, x, *, weight):
            return self.net(x * weight[:, None, None, None])

    torch.manual_seed(0)
    model, weight = Weighted().double().eval(), torch.tensor([0.5, 3.0], dtype=torch.float64)

    def positional(x, weight):
        return model(x, weight=weight)

    theirs = captum.attr.Saliency(positional).attribute(
        x.clone().requires_grad_(), target=CLASSES, abs=False, additional_forward_args=weight
    )
    found = ak.attribute(model, x, "gradient", CLASSES, forward_kwargs={"weight": weight}).values
    assert_equal(found, theirs.detach())


def test_a_wrapper_around_the_model_is_a_callable_target(model, x):
    def score(output):
        return output[:, 1] - output[:, 2]

    theirs = captum.attr.Saliency(lambda inputs: score(model(inputs))).attribute(x.clone().requires_grad_(), abs=False)
    assert_equal(ak.attribute(model, x, "gradient", score).values, theirs.detach())


def test_captum_leaves_the_inputs_changed_after_a_failure(model, x):
    class Fails(Net):
        def forward(self, x):
            raise RuntimeError("on purpose")

    broken, given = Fails().double(), x.clone()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(RuntimeError, match="on purpose"):
            captum.attr.Saliency(broken).attribute(given, target=CLASSES)
    assert given.requires_grad
    given = x.clone()
    with pytest.raises(RuntimeError, match="on purpose"):
        ak.attribute(broken, given, "gradient", CLASSES)
    assert not given.requires_grad


def test_captum_keeps_training_mode_on(x):
    """Dropout stays active in Captum unless the caller switches it off."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(3 * 12 * 12, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 3)
    ).double()
    model.train()
    one, other = (captums(captum.attr.Saliency, model, x, target=CLASSES) for _ in range(2))
    assert_different(one, other)
    maps = [ak.attribute(model, x, "gradient", CLASSES).values for _ in range(2)]
    assert torch.equal(*maps)
    assert model.training
    assert_equal(maps[0].abs(), captums(captum.attr.Saliency, model.eval(), x, target=CLASSES))


def test_other_rectifiers_are_ignored_by_captum_without_a_word(model, x):
    """On networks of ReLU6, EfficientNet-Lite0 for one, Captum's guided backprop is the plain gradient."""
    other = copy.deepcopy(model)
    other.relu1, other.relu2 = nn.ReLU6(), nn.ReLU6()
    gradient = ak.attribute(other, x, "gradient", CLASSES).values
    for name, algorithm in (
        ("guided_backprop", captum.attr.GuidedBackprop),
        ("deconvnet", captum.attr.Deconvolution),
    ):
        assert_equal(captums(algorithm, other, x, target=CLASSES), gradient)
        assert_different(ak.attribute(other, x, name, CLASSES).values, gradient)


def test_captums_path_methods_are_the_shelfs(model, x, shelf):
    paths = shelf("paths", "paths")
    found = ak.attribute(model, x, paths.InputXGradient(), CLASSES).values
    assert_equal(found, captums(captum.attr.InputXGradient, model, x, target=CLASSES))
    for rule, name in (("gauss_legendre", "gausslegendre"), ("riemann_middle", "riemann_middle")):
        theirs = captums(captum.attr.IntegratedGradients, model, x, target=CLASSES, n_steps=20, method=name)
        found = ak.attribute(model, x, paths.IntegratedGradients(), CLASSES, steps=20, rule=rule).values
        assert_equal(found, theirs, 1e-6)  # Captum's weights are float32 numbers
    defaults = captums(captum.attr.IntegratedGradients, model, x, target=CLASSES)
    assert_equal(ak.attribute(model, x, paths.IntegratedGradients(), CLASSES).values, defaults, 1e-6)


def test_captums_grad_cam_is_the_shelfs(model, x, shelf):
    network = copy.deepcopy(model)
    made = captum.attr.LayerGradCam(network, network.relu2)
    theirs = made.attribute(x.clone(), target=CLASSES, relu_attributions=True).detach()
    found = ak.attribute(model, x, shelf("cam", "methods").GradCam(), CLASSES, layer="relu2")
    assert_equal(found.extras["map at relu2"], theirs[:, 0])
    enlarged = captum.attr.LayerAttribution.interpolate(theirs, (12, 12), interpolate_mode="bilinear")
    assert_equal(found.heatmap(), enlarged[:, 0])
    assert_different(captum.attr.LayerAttribution.interpolate(theirs, (12, 12))[:, 0], found.heatmap())  # nearest


# -- pytorch-grad-cam: its maps are compared in plugins/attribkit-cam/tests/test_gradcam.py ---------------------------


def test_what_pytorch_grad_cams_softmax_target_is_here(model, x, shelf):
    """A callable target that returns the probability: Grad-CAM's weights are then the probability's derivative."""

    def probability(output):
        return output.softmax(-1)[:, 1]

    found = ak.attribute(model, x, shelf("cam", "methods").GradCam(), probability, layer="relu2")
    activations = model.features(x).detach().requires_grad_()
    scores = model.fc(activations.flatten(1)).softmax(-1)[:, 1]
    (g,) = torch.autograd.grad(scores.sum(), activations)
    expected = (g.mean((2, 3), keepdim=True) * activations).sum(1).clamp(min=0).detach()
    assert_equal(found.extras["map at relu2"], expected, 1e-9)


# -- Zennit ------------------------------------------------------------------------------------------------------------


def test_zennits_gradient(model, x):
    assert_equal(ak.attribute(model, x, "gradient", CLASSES).values, zennits(model, x))


def test_zennits_composites(model, x):
    for name, composite in (("guided_backprop", GuidedBackprop()), ("deconvnet", DeconvNet())):
        assert_equal(ak.attribute(model, x, name, CLASSES).values, zennits(model, x, composite))


def test_zennits_output_gradient_is_a_callable_target(model, x):
    """A weighting of the outputs, constant or a function of them, is a score whose derivative it is."""
    weights = random(2, 3, seed=60)
    with Gradient(model=copy.deepcopy(model)) as made:
        theirs = made(x.clone(), weights)[1].detach()
    assert_equal(ak.attribute(model, x, "gradient", lambda output: (output * weights).sum(1)).values, theirs)
    with Gradient(model=copy.deepcopy(model)) as made:
        theirs = made(x.clone(), lambda output: output * F.one_hot(CLASSES, 3))[1].detach()
    at = torch.arange(2)
    found = ak.attribute(model, x, "gradient", lambda output: output[at, CLASSES] ** 2 / 2).values
    assert_equal(found, theirs)


@pytest.mark.parametrize("name", ["EpsilonPlusFlat", "EpsilonGammaBox", "EpsilonAlpha2Beta1", "Epsilon"])
def test_zennits_relevance_composites(model, x, name, shelf):
    """Here the relevance starts as the score of the class, there as what the caller gives."""
    ours = shelf("lrp", "composites")
    if name == "Epsilon":
        composite = composites.LayerMapComposite(
            [(composites.Activation, Pass()), (AvgPool, Norm()), ((composites.Convolution, Linear), Epsilon())]
        )
    elif name == "EpsilonGammaBox":
        composite = composites.EpsilonGammaBox(low=-4.0, high=4.0)
    else:
        composite = getattr(composites, name)()
    options = {"low": -4.0, "high": 4.0} if name == "EpsilonGammaBox" else {}
    found = ak.attribute(model, x, getattr(ours, f"Lrp{name}")(), CLASSES, **options).values
    with Gradient(model=copy.deepcopy(model), composite=composite) as made:
        relevance = made(x.clone(), lambda output: output * F.one_hot(CLASSES, 3))[1].detach()
    assert_equal(found, relevance, 1e-9)
    with Gradient(model=copy.deepcopy(model), composite=copy.deepcopy(composite)) as made:
        of_one = made(x.clone(), F.one_hot(CLASSES, 3).to(x))[1].detach()
    scores = model(x)[torch.arange(2), CLASSES].detach()
    assert_equal(found, of_one * scores[:, None, None, None], 1e-9)


def test_zennits_path_methods(model, x, shelf):
    paths, noise = shelf("paths", "paths"), shelf("paths", "noise")
    theirs = zennits(model, x, attributor=IntegratedGradients, n_iter=20)
    for rule, equal in (("riemann_right", True), ("riemann_left", False), ("riemann_middle", False)):
        found = ak.attribute(model, x, paths.IntegratedGradients(), CLASSES, steps=20, rule=rule).values
        (assert_equal if equal else assert_nearly)(found, theirs)
    # its first copy has no noise, and its range is that of each sample: without noise both are the gradient
    theirs = zennits(model, x, attributor=SmoothGrad, noise_level=0.0, n_iter=3)
    assert_equal(ak.attribute(model, x, noise.SmoothGrad(), CLASSES, noise=0.0, samples=3).values, theirs)


def assert_nearly(found, expected):
    assert 1e-6 < (found - expected).abs().max() / expected.abs().max() < 0.5


# -- the page itself ---------------------------------------------------------------------------------------------------


def calls_of_the_page():
    page = Path(__file__).parents[2] / "docs" / "migration.md"
    rows = [line for line in page.read_text("utf-8").splitlines() if line.startswith("| `")]
    calls = [code for row in rows for code in row.split(" | ")[1].split("`")[1::2]]
    return [code for code in calls if code.startswith(("ak.", "target="))]


def test_the_calls_of_the_page_run_as_they_are_written(x, shelf, monkeypatch):
    """`layer` and `layer4` stand for layers; Grad-CAM is given as a class, as the shelf may not be installed."""
    torch.manual_seed(0)
    model = nn.Sequential()
    for name, module in (("layer", nn.Conv2d(3, 4, 3)), ("layer4", nn.ReLU()), ("flat", nn.Flatten())):
        model.add_module(name, module)
    model.add_module("head", nn.Linear(4 * 10 * 10, 3))
    names = {"ak": ak, "torch": torch, "model": model.double().eval(), "x": x, "c": 1, "i": 2, "j": 2, "h": 4, "w": 3}
    names |= {"b": 0.5, "y": CLASSES, "weights": random(2, 3)}
    monkeypatch.setitem(names, "GradCam", shelf("cam", "methods").GradCam)
    calls = calls_of_the_page()
    assert len(calls) >= 9
    for call in calls:
        if call.startswith("target="):
            call = f'ak.attribute(model, x, "gradient", {call})'
        found = eval(call.replace('"grad_cam"', "GradCam"), names)
        assert found is not None, call
