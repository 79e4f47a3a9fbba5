"""Bad input to the Python functions: one clear line that names the input, its value and the rule."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from traces import METHODS

import attribkit as ak
from attribkit import errors
from attribkit.engine.layers import GatedRectify

pytestmark = pytest.mark.usefixtures("one_thread")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv1 = nn.Conv2d(3, 4, 3)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(4, 4, 3)
        self.relu2 = nn.ReLU()
        self.fc = nn.Linear(64, 5)

    def forward(self, x):
        return self.fc(self.relu2(self.conv2(self.relu1(self.conv1(x)))).flatten(1))


NET = Net().eval()
X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def refused(kind, *words, model=NET, inputs=X, **arguments):
    """Assert that the call is refused in one line that has every one of ``words``; return the error."""
    with pytest.raises(kind) as caught:
        ak.attribute(model, inputs, **arguments)
    message = str(caught.value)
    assert message
    assert "\n" not in message
    for word in words:
        assert str(word) in message, f"{word!r} is not in {message!r}"
    return caught.value


def changed(index, value):
    x = X.clone()
    x[index] = value
    return x


@pytest.mark.parametrize(
    ("attribute", "value", "words"),
    [
        ("unit_signal", "activations", "unit_signal must be 'one' or 'activation', got 'activations'"),
        ("unit_signal", None, "unit_signal must be 'one' or 'activation', got None"),
        ("inverse_layers", {"rectifier": GatedRectify}, "inverse_layers['rectifier'] is <class"),
        ("inverse_layers", {3: GatedRectify()}, "inverse_layers has the key 3"),
        ("inverse_layers", None, "inverse_layers must be a dict, got NoneType"),
    ],
)
def test_a_declaration_that_breaks_a_rule(attribute, value, words):
    method = type("Faulty", (ak.InverseMethod,), {"name": "faulty", "summary": "Faulty", attribute: value})
    for target in (4, ak.Unit("relu1", 0)):
        refused(errors.InputError, f"method 'faulty': {words}", method=method, target=target)
    with pytest.raises(errors.InputError, match="method 'faulty'"):
        ak.project(NET, X, "relu1", [0], method=method)


def test_the_good_call_is_good():
    for method in METHODS:
        assert ak.attribute(NET, X, method=method, target=4).values.any()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(3, 8, 8), (8, 8), (2, 3, 8, 8, 8), ()])
def test_rank(shape, method):
    error = refused(errors.InputError, "inputs", method=method, inputs=torch.zeros(shape))
    assert ", ".join(map(str, shape)) in str(error).replace("×", ", ").replace("x", ", ")
    assert "N, C, H, W" in str(error)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool, torch.complex64])
def test_dtype(dtype):
    error = refused(errors.InputTypeError, str(dtype).removeprefix("torch."), "float", inputs=X.to(dtype))
    assert isinstance(error, TypeError)
    assert isinstance(error, ValueError)


@pytest.mark.parametrize("inputs", [X.numpy(), [[1.0]], None, "cat.jpg"])
def test_not_a_tensor(inputs):
    refused(errors.InputTypeError, "inputs", type(inputs).__name__, inputs=inputs)


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("method", METHODS)
def test_channel_count(channels, method):
    refused(errors.InputError, "channel", channels, 3, method=method, inputs=torch.zeros(2, channels, 8, 8))


@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (2, 3, 0, 8), (2, 3, 8, 0)])
def test_empty(shape):
    refused(errors.InputError, "inputs", 0, inputs=torch.zeros(shape))


@pytest.mark.parametrize(("value", "word"), [(math.nan, "nan"), (math.inf, "inf"), (-math.inf, "inf")])
@pytest.mark.parametrize("method", METHODS)
def test_not_finite_says_where(value, word, method):
    error = refused(errors.InputError, "inputs", "1, 2, 3, 4", method=method, inputs=changed((1, 2, 3, 4), value))
    assert word in str(error).lower()
    first = refused(errors.InputError, "0, 1, 0, 7", method=method, inputs=changed((slice(None), 1, 0, 7), value))
    assert "0, 1, 0, 7" in str(first)  # of several, the first


@pytest.mark.parametrize(
    ("name", "near"),
    [("guided_backprob", "guided_backprop"), ("Deconvnet", "deconvnet"), ("gradients", "gradient"), ("GRADIENT", "")],
)
def test_unknown_method(name, near):
    error = refused(errors.UnknownNameError, name, near, "method", method=name)
    assert isinstance(error, LookupError)


def test_a_method_of_another_type():
    refused(errors.AttribkitError, "method", method=3)
    refused(errors.AttribkitError, "method", method=nn.ReLU)


@pytest.mark.parametrize(
    ("method", "option", "near"),
    [("occlusion", "strid", "stride"), ("occlusion", "Window", "window"), ("occlusion", "scores", "score")],
)
def test_unknown_option(method, option, near):
    error = refused(errors.UnknownOptionError, method, option, near, method=method, **{option: 4})
    assert isinstance(error, TypeError)


@pytest.mark.parametrize("method", METHODS)
def test_an_option_of_another_method(method):
    refused(errors.UnknownOptionError, method, "n_steps", method=method, n_steps=50)


@pytest.mark.parametrize(("layer", "near"), [("conv3", "conv1"), ("Conv1", "conv1"), ("relu", "relu1")])
def test_unknown_layer(layer, near):
    refused(errors.UnknownNameError, "layer", repr(layer), near, target=ak.Unit(layer, 0))
    with pytest.raises(errors.UnknownNameError) as caught:
        ak.project(NET, X, layer, [0])
    assert near in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("layer", ["", None, 3])
def test_not_the_name_of_a_layer(layer):
    with pytest.raises(errors.InputError, match="layer") as caught:
        ak.attribute(NET, X, target=ak.Unit(layer, 0))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("target", [5, 1000, -1])
@pytest.mark.parametrize("method", METHODS)
def test_class_out_of_range(target, method):
    refused(errors.InputError, target, "5 classes", method=method, target=target)
    refused(errors.InputError, target, "5 classes", method=method, target=torch.tensor([0, target]))


@pytest.mark.parametrize("channel", [4, 99, -1])
@pytest.mark.parametrize("method", METHODS)
def test_channel_out_of_range(channel, method):
    refused(errors.InputError, "channel", channel, "conv2", 4, method=method, target=ak.Unit("conv2", channel))


def test_channels_of_project_out_of_range():
    for channels in ([0, 4], [-1], [99]):
        with pytest.raises(errors.InputError, match="conv2") as caught:
            ak.project(NET, X, "conv2", channels)
        assert str(channels[-1]) in str(caught.value)
    with pytest.raises(errors.InputError, match="channels"):
        ak.project(NET, X, "conv2", [])


@pytest.mark.parametrize(
    "target", [torch.tensor([1]), torch.tensor([[1]]), torch.tensor([0, 1, 2]), torch.zeros(2, 1, dtype=torch.long)]
)
@pytest.mark.parametrize("method", METHODS)
def test_target_of_wrong_length(target, method):
    error = refused(errors.InputError, "target", method=method, target=target)
    assert str(target.shape[0]) in str(error)
    assert "2" in str(error)


@pytest.mark.parametrize("target", [torch.tensor([0.0, 1.0]), 1.5, "dog", True, np.array([1, 2]), object()])
def test_target_of_wrong_type(target):
    refused(errors.InputError, "target", target=target)


@pytest.mark.parametrize(
    "scores",
    [lambda outputs: outputs, lambda outputs: outputs.sum(), lambda outputs: outputs[:1, 0], lambda outputs: 3.0],
)
@pytest.mark.parametrize("method", METHODS)
def test_a_callable_target_that_returns_no_scores(scores, method):
    refused(errors.InputError, "target", method=method, target=scores)


def test_dense_outputs_need_a_callable():
    net = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU())
    refused(errors.AttribkitError, "2, 5, 6, 6", "callable", model=net, target=1)
    assert ak.attribute(net, X, target=lambda outputs: outputs[:, 1].sum((1, 2))).values.any()


class TheirError(RuntimeError):
    pass


class Failing(Net):
    def forward(self, x):
        super().forward(x)
        raise TheirError("the model's own words")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("target", [1, None, lambda outputs: outputs[:, 0]])
def test_a_model_whose_forward_raises(target, method):
    """The model's own exception, unchanged, and marked as such."""
    with pytest.raises(TheirError) as caught:
        ak.attribute(Failing(), X, method=method, target=target)
    assert str(caught.value) == "the model's own words"
    assert caught.value.attribkit_origin == "model forward"
    notes = getattr(caught.value, "__notes__", [])
    assert any("Failing" in note and "forward" in note for note in notes), notes
    with pytest.raises(TheirError) as caught:
        ak.inspect(Failing(), X, method=method)
    assert caught.value.attribkit_origin == "model forward"


def test_a_size_the_model_cannot_take_is_the_models_error():
    with pytest.raises(RuntimeError, match="mat1 and mat2") as caught:
        ak.attribute(NET, torch.zeros(1, 3, 12, 12), method="deconvnet", target=0)
    assert caught.value.attribkit_origin == "model forward"


def test_errors_of_ours_are_not_marked_as_the_models():
    for arguments in ({"target": 99}, {"target": ak.Unit("conv9", 0)}, {"method": "none"}):
        error = refused(errors.AttribkitError, **arguments)
        assert not hasattr(error, "attribkit_origin")


def test_a_script_module_is_refused():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(Net().eval(), X)
    for method in METHODS:
        refused(errors.ModelError, "script", method=method, model=traced)
    refused(errors.ModelError, "script", model=nn.Sequential(traced, nn.ReLU()))


@pytest.mark.parametrize("model", [None, lambda x: x, "resnet18", Net])
def test_not_a_model(model):
    refused(errors.AttribkitError, "model", model=model)


@pytest.mark.parametrize("batch_size", [0, -4, 1.5])
def test_batch_size(batch_size):
    refused(errors.AttribkitError, "batch_size", batch_size, batch_size=batch_size)


class Linear(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 5))


@pytest.mark.parametrize("method", ["guided_backprop", "deconvnet"])
def test_a_method_without_anything_to_do_is_said(method):
    with pytest.warns(ak.CoverageWarning, match=method):
        found = ak.attribute(Linear(), X, method=method, target=1)
    assert found.coverage.rewritten == 0
    refused(errors.CoverageError, method, model=Linear(), method=method, target=1, strict=True)
    # One rectifier anywhere is enough, also above the unit; the plain methods never warn.
    assert ak.attribute(NET, X, method=method, target=ak.Unit("conv1", 0), strict=True).values.any()
    assert ak.attribute(Linear(), X, method="gradient", target=1, strict=True).values.any()


# -- inputs that do not fit the model ----------------------------------------------------------------------------------


def fails_in_one_line(match, call):
    with pytest.raises(ak.AttribkitError, match=match) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", ["gradient", "guided_backprop", "occlusion"])
def test_inputs_of_another_dtype_than_the_model(method):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).eval()
    x = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    match = r"inputs has the dtype float64, but the model's parameters have float32: give inputs\.to\(torch\.float32\)"
    fails_in_one_line(match, lambda: ak.attribute(net, x, method, 1))
    fails_in_one_line(match, lambda: ak.inspect(net, x))
    fails_in_one_line(match, lambda: ak.project(net, x, "0", [0]))
    assert ak.attribute(nn.Sequential(Casts(), net), x, method, 1).values.any()  # whose business it is


class Casts(nn.Module):
    def forward(self, x):
        return x.float()


def test_inputs_on_another_device_than_the_model():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).eval()
    x = torch.randn(1, 3, 8, 8)
    match = r"inputs has the device {}, but the model's parameters have {}: give inputs\.to\('{}'\)"
    fails_in_one_line(match.format("meta", "cpu", "cpu"), lambda: ak.attribute(net, x.to("meta"), "gradient", 1))
    fails_in_one_line(match.format("cpu", "meta", "meta"), lambda: ak.attribute(net.to("meta"), x, "gradient", 1))


def test_what_has_no_values_on_the_meta_device():
    with torch.device("meta"):
        net, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten()), torch.empty(1, 3, 8, 8)
    fails_in_one_line("meta device", lambda: ak.attribute(net, x, "occlusion", 1))
    fails_in_one_line("meta device", lambda: ak.project(net, x, "0", [0]))


def test_inputs_of_other_kinds():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten())
    fails_in_one_line("float8", lambda: ak.attribute(net, torch.zeros(1, 3, 8, 8).to(torch.float8_e4m3fn), "gradient"))
    fails_in_one_line(
        r"sparse_coo.*to_dense", lambda: ak.attribute(net, torch.ones(1, 3, 8, 8).to_sparse(), "gradient")
    )


@pytest.mark.parametrize(
    "scores", [lambda x: x[:, :0], lambda x: x > 0, lambda x: x.to(torch.complex64)], ids=["none", "bool", "complex"]
)
def test_outputs_that_are_no_class_scores(scores):
    class Net(nn.Module):
        def forward(self, x):
            return scores(torch.relu(x).mean((2, 3)))

    fails_in_one_line("holds no class scores", lambda: ak.attribute(Net(), torch.randn(2, 3, 8, 8), "gradient"))


@pytest.mark.parametrize("method", ["gradient", "occlusion"])
def test_targets_that_return_no_numbers(method):
    net, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten()), torch.randn(2, 3, 8, 8)
    fails_in_one_line(r"numbers, got torch\.bool", lambda: ak.attribute(net, x, method, lambda o: o[:, 0] > 0))
