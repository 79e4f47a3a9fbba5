"""What the plugin does around Captum: targets, reused modules, draws, quiet, refusals."""

import random
import warnings

import captum.attr as ca
import numpy as np
import pytest
import torch
from attribkit_captum.found import algorithms, snake_case
from captum_nets import CLASSES, Residual, images, net
from torch import nn

import attribkit as ak
from attribkit.errors import InputError, MethodError, ModelError

NAMES = [f"captum.{snake_case(name)}" for name in algorithms()]
ALONE = [name for name in NAMES if name != "captum.feature_permutation"]


@pytest.mark.parametrize("name", ALONE)
def test_a_units_map_is_that_of_a_network_that_ends_there(name):
    model, x = net(), images(2)
    own = {"layer": "0"} if name == "captum.guided_grad_cam" else {}
    found = ak.attribute(model, x, name, ak.Unit("1", 2, (3, 4)), **own).values

    class Cut(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = model[:2]

        def forward(self, x):
            return self.body(x)[:, 2, 3, 4, None]

    own = {"layer": "body.0"} if name == "captum.guided_grad_cam" else {}
    expected = ak.attribute(Cut(), x, name, 0, **own).values
    assert torch.allclose(found, expected, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("name", ALONE)
def test_each_sample_keeps_its_own_strongest_position(name):
    model, x = net(), images()
    unit = ak.Unit("4", 1)
    together = ak.attribute(model, x, name, unit).values
    alone = [ak.attribute(model, x[i : i + 1], name, unit).values for i in range(len(x))]
    assert torch.allclose(together, torch.cat(alone), rtol=1e-6, atol=1e-9)


@pytest.mark.filterwarnings("ignore:.*Setting", "ignore:.*Input Tensor")
@pytest.mark.parametrize("name", ["captum.deep_lift", "captum.deep_lift_shap"])
def test_a_module_may_be_called_several_times(name):
    model, x = Residual(), images(2)
    with pytest.raises(RuntimeError, match="more than once"):
        ca.DeepLift(model).attribute(x.clone(), target=1)
    found = ak.attribute(model, x, name, 1).values
    with torch.no_grad():
        gain = (model(x) - model(0 * x))[:, 1]
    assert torch.allclose(found.sum((1, 2, 3)), gain, rtol=1e-8)
    assert isinstance(model.relu, nn.ReLU)
    unit = ak.attribute(model, x, name, ak.Unit("relu_1", 2, (3, 3))).values
    assert unit.abs().max() > 0


DILATED = [
    {"kernel_size": 2, "stride": 2, "dilation": 2},
    {"kernel_size": 3, "stride": 1, "dilation": 2, "padding": 1},
    {"kernel_size": (3, 2), "stride": (2, 3), "dilation": (3, 1), "padding": (1, 0), "ceil_mode": True},
]


@pytest.mark.filterwarnings("ignore:.*Setting", "ignore:.*Input Tensor")
@pytest.mark.parametrize("name", ["captum.deep_lift", "captum.deep_lift_shap"])
@pytest.mark.parametrize("settings", DILATED, ids=["two", "padded", "each side its own"])
def test_max_pooling_may_have_a_dilation(settings, name):
    torch.manual_seed(0)
    pool = nn.MaxPool2d(**settings)
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), pool, nn.Flatten())
    model = nn.Sequential(*body, nn.Linear(body(torch.zeros(1, 3, 12, 12)).shape[1], 4)).double().eval()
    x = images(2)
    with pytest.raises(ValueError, match="invalid output_size"):
        ca.DeepLift(model).attribute(x.clone(), target=1)
    found = ak.attribute(model, x, name, 1).values
    with torch.no_grad():
        gain = (model(x) - model(0 * x))[:, 1]
    assert torch.allclose(found.sum((1, 2, 3)), gain, rtol=1e-8)
    assert model[2] is pool


@pytest.mark.filterwarnings("ignore:.*Setting", "ignore:.*Input Tensor")
def test_a_dilated_pool_that_captum_takes_is_its_own():
    torch.manual_seed(0)
    pool = nn.MaxPool2d(2, 3, dilation=2)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), pool, nn.Flatten(), nn.Linear(36, 4)).double().eval()
    x = images(2)
    expected = ca.DeepLift(model).attribute(x.clone(), torch.zeros_like(x), target=1)
    assert torch.equal(ak.attribute(model, x, "captum.deep_lift", 1).values, expected.detach())


@pytest.mark.filterwarnings("ignore:.*Setting", "ignore:.*Input Tensor")
@pytest.mark.parametrize("name", ["captum.deep_lift", "captum.deep_lift_shap"])
def test_a_softmax_does_not_mix_the_images_of_a_batch(name):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(400, 4), nn.Softmax(1)).double().eval()
    x, y = images(3), torch.tensor([1, 2, 0])
    zeros = torch.zeros_like(x)
    alone = [ca.DeepLift(model).attribute(x[i : i + 1].clone(), zeros[:1], target=int(y[i])) for i in range(3)]
    mixed = ca.DeepLift(model).attribute(x.clone(), zeros, target=y)
    assert not torch.allclose(mixed, torch.cat(alone), rtol=1e-3)
    found = ak.attribute(model, x, name, y)
    if name == "captum.deep_lift":
        assert torch.allclose(found.values, torch.cat(alone).detach(), rtol=1e-9)
        baselines = 0.5 * x
        own = ak.attribute(model, x, name, y, baselines=baselines, return_convergence_delta=True)
        assert own.extras["convergence_delta"].shape == (3,)
        last = ca.DeepLift(model).attribute(x[2:].clone(), baselines[2:], target=0)
        assert torch.allclose(own.values[2:], last.detach(), rtol=1e-9)
    else:
        last = ak.attribute(model, x[2:], name, y[2:])
        assert torch.allclose(found.values[2:], last.values, rtol=1e-9)


def test_a_convolution_may_be_called_several_times_under_lrp():
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 3, 3, padding=1, bias=False)
    model = nn.Sequential(conv, nn.ReLU(), conv, nn.Flatten(), nn.Linear(432, 4, bias=False)).double().eval()
    x = images(2)
    with pytest.raises(RuntimeError, match="more than once"):
        ca.LRP(nn.Sequential(*model[:3])).attribute(x.clone().requires_grad_(), target=(0, 1, 1))
    found = ak.attribute(model, x, "captum.lrp", 1).values
    with torch.no_grad():
        assert torch.allclose(found.sum((1, 2, 3)), model(x)[:, 1], rtol=1e-4)


def test_shared_weights_stay_shared_and_nothing_is_left():
    model, x = Residual(), images(2)
    before = [(name, id(value), value.clone()) for name, value in model.named_parameters()]
    attributes = {name: sorted(vars(module)) for name, module in model.named_modules()}
    for name in NAMES:
        ak.attribute(model, x, name, 1)
    assert all(
        id(value) == number and torch.equal(value, old)
        for (_, number, old), value in zip(before, model.parameters(), strict=True)
    )
    assert attributes == {name: sorted(vars(module)) for name, module in model.named_modules()}


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_said_and_no_generator_moves(name):
    model, x = net(), images(2)
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    torch.manual_seed(3)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    method = ak.methods()[name].load()()
    target = ak.attribute(model, x, "gradient", 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first = ak.attribute(model, x, method, 1).values
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()  # noqa: NPY002
    torch.manual_seed(99)
    assert torch.equal(ak.attribute(model, x, name, 1).values, first)
    assert first.shape == target.values.shape


def test_another_seed_gives_other_draws():
    model, x = net(), images(1)
    seeds = [name for name in NAMES if "seed" in ak.methods()[name].options]
    assert "captum.lime" in seeds
    for name in seeds:
        if name == "captum.feature_permutation":
            continue  # of a single image nothing is drawn
        one, other = (ak.attribute(model, x, name, 1, seed=seed).values for seed in (0, 1))
        assert not torch.equal(one, other), name


def test_the_models_own_warnings_come_through():
    class Loud(nn.Module):
        def forward(self, x):
            warnings.warn("the model speaks", stacklevel=1)
            return x.flatten(1)

    with pytest.warns(UserWarning, match="the model speaks"):
        ak.attribute(Loud(), images(1), "captum.deep_lift", 1)


def test_a_model_that_cannot_be_copied_is_refused():
    class Stubborn(nn.Module):
        def __init__(self):
            super().__init__()
            self.relu = nn.ReLU()

        def __deepcopy__(self, memo):
            raise TypeError("no copies")

        def forward(self, x):
            return self.relu(x).flatten(1)

    with pytest.raises(ModelError, match="needs a copy of the model, and Stubborn has none: no copies"):
        ak.attribute(Stubborn(), images(1), "captum.guided_backprop", 1)
    ak.attribute(Stubborn(), images(1), "captum.saliency", 1)


def test_a_map_of_which_nothing_is_finite_is_an_error():
    class Roots(nn.Module):
        def forward(self, x):
            return x.clamp(max=0).sqrt().flatten(1).sum(1, keepdim=True) + x.flatten(1).nan_to_num()

    with pytest.raises(MethodError, match="Captum's Saliency gave no finite value"):
        ak.attribute(Roots(), -images(1).abs(), "captum.saliency", 1)


def test_a_layer_has_a_default_and_a_name():
    model, x = net(), images(2)
    default = ak.attribute(model, x, "captum.guided_grad_cam", 1).values
    assert torch.equal(default, ak.attribute(model, x, "captum.guided_grad_cam", 1, layer="3").values)
    assert not torch.equal(default, ak.attribute(model, x, "captum.guided_grad_cam", 1, layer="0").values)
    flat = nn.Sequential(nn.Flatten(), nn.Linear(432, 4)).double()
    assert ak.attribute(flat, x, "captum.guided_grad_cam", 1).values.shape == x.shape  # the image itself is the layer


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("saliency", {"abz": True}, "has no option 'abz'; did you mean 'abs'"),
        ("occlusion", {"sliding_window_shapes": (3, 90, 2)}, "captum.occlusion: .*cannot exceed input dimensions"),
        ("lime", {"seed": -1}, r"seed must be an int from 0 to 2\*\*32 - 1, got -1"),
        ("lime", {"seed": 1.5}, "seed must be an int"),
        ("guided_grad_cam", {"layer": "conv9"}, "layer 'conv9' is no module of the model"),
        ("guided_grad_cam", {"layer": nn.ReLU()}, "layer must be a module's name, got a ReLU"),
        ("lrp", {"default_rule": "Epsilon"}, "default_rule 'Epsilon' is no rule; did you mean 'EpsilonRule'"),
        ("noise_tunnel", {"attribution_method": "salience"}, "is no method of Captum's; did you mean 'saliency'"),
        ("noise_tunnel", {"attribution_method": "noise_tunnel"}, "is no method of Captum's"),
        ("noise_tunnel", {"attribution_options": [1]}, "attribution_options must be a dict"),
        ("noise_tunnel", {"attribution_options": {"abz": 1}}, "'captum.saliency' has no option 'abz'"),
        ("feature_ablation", {"perturbations_per_eval": 0}, "must be an integer and at least 1"),
        ("deep_lift_shap", {"baselines": torch.zeros(1, 3, 12, 12).double()}, "more than one example"),
    ],
)
def test_bad_options_are_refused_in_one_line(method, options, message):
    with pytest.raises(InputError, match=message) as caught:
        ak.attribute(net(), images(2), f"captum.{method}", CLASSES[:2], **options)
    assert "\n" not in str(caught.value)


def test_without_a_default_rule_captum_refuses_what_it_has_no_rule_for():
    with pytest.raises(TypeError, match="has no rule defined"):
        ak.attribute(net(), images(1), "captum.lrp", 1, default_rule=None)
