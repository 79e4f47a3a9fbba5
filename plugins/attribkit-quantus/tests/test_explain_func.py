"""`explain_func`: Quantus's signature, attribkit's maps."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from attribkit_quantus import explain_func
from evaluated_nets import CLASSES, images, net
from torch import nn

import attribkit as ak
from attribkit.errors import InputError, InputTypeError, UnknownNameError, UnknownOptionError


def by_hand(model, x, y, method="gradient", **options):
    return ak.attribute(model, torch.as_tensor(x), method, torch.as_tensor(y), **options).values.numpy()


def test_the_signature_is_that_of_quantus():
    parameters = inspect.signature(explain_func).parameters
    assert list(parameters) == ["model", "inputs", "targets", "kwargs"]
    assert parameters["kwargs"].kind is inspect.Parameter.VAR_KEYWORD


@pytest.mark.parametrize("method", ["gradient", "guided_backprop", "deconvnet", "occlusion"])
def test_the_map_is_the_methods(method):
    model, x = net(), images()
    found = explain_func(model=model, inputs=x, targets=CLASSES, method=method)
    assert type(found) is np.ndarray
    assert found.dtype == np.float32
    assert found.flags.writeable
    assert found.shape == x.shape
    np.testing.assert_array_equal(found, by_hand(model, x, CLASSES, method))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.longdouble])
def test_inputs_of_any_float_dtype_go_to_the_models(dtype):
    x = images(dtype=dtype)
    for model in (net(), net().double()):
        kept = next(model.parameters()).dtype
        found = explain_func(model=model, inputs=x, targets=CLASSES, method="gradient")
        expected = by_hand(model, torch.as_tensor(x.astype(np.float64)).to(kept), CLASSES)
        np.testing.assert_array_equal(found, expected)


def test_methods_by_class_and_instance_and_their_options():
    model, x = net(), images()
    kind = ak.methods()["occlusion"].load()
    expected = by_hand(model, x, CLASSES, "occlusion", window=4, stride=2)
    for method in ("occlusion", kind, kind()):
        found = explain_func(model, x, CLASSES, method=method, window=4, xai_lib_kwargs={"stride": 2})
        np.testing.assert_array_equal(found, expected)


def test_without_a_method_it_is_attributes_default():
    model, x = net(), images()
    np.testing.assert_array_equal(explain_func(model, x, CLASSES), by_hand(model, x, CLASSES, "deconvnet"))


@pytest.mark.parametrize("targets", [CLASSES, CLASSES.astype(np.uint8), list(CLASSES), torch.as_tensor(CLASSES)])
def test_targets_in_several_forms(targets):
    model, x = net(), images()
    found = explain_func(model, x, targets, method="gradient")
    np.testing.assert_array_equal(found, by_hand(model, x, CLASSES))


def test_one_target_for_all():
    model, x = net(), images()
    found = explain_func(model, torch.as_tensor(x), np.int64(2), method="gradient")
    np.testing.assert_array_equal(found, by_hand(model, x, [2, 2, 2]))


def test_what_quantus_passes_beside_changes_nothing():
    model, x = net(), images()
    passed = {"device": "cpu", "xai_lib": "captum", "img_size": 16, "nr_channels": 3, "nr_samples": 7, "softmax": None}
    found = explain_func(model, x, CLASSES, method="gradient", channel_first=True, **passed)
    np.testing.assert_array_equal(found, by_hand(model, x, CLASSES))


def test_channels_last():
    model, x = net(), images()
    found = explain_func(model, np.moveaxis(x, 1, -1), CLASSES, method="gradient", channel_first=False)
    np.testing.assert_array_equal(np.moveaxis(found, -1, 1), by_hand(model, x, CLASSES))


def test_absolute_normalised_and_summed():
    model, x = net(), images()
    plain = by_hand(model, x, CLASSES)
    largest = np.abs(plain).max((1, 2, 3), keepdims=True)
    np.testing.assert_array_equal(explain_func(model, x, CLASSES, method="gradient", abs=True), np.abs(plain))
    np.testing.assert_array_equal(explain_func(model, x, CLASSES, method="gradient", normalise=True), plain / largest)
    found = explain_func(
        model, x, CLASSES, method="gradient", normalise=True, normalise_func=lambda a, by: a / by,
        normalise_func_kwargs={"by": 2},
    )  # fmt: skip
    np.testing.assert_array_equal(found, plain / 2)
    summed = explain_func(model, x, CLASSES, method="gradient", reduce_axes=(1,))
    np.testing.assert_array_equal(summed, plain.sum(1, keepdims=True))
    flat = explain_func(model, x, CLASSES, method="gradient", reduce_axes=(1,), keepdims=False)
    np.testing.assert_array_equal(flat, plain.sum(1))


def test_softmax_asks_for_the_probability():
    model, x = net(), images()
    expected = by_hand(nn.Sequential(model, nn.Softmax(-1)), x, CLASSES)
    found = explain_func(model, x, CLASSES, method="gradient", softmax=True)
    np.testing.assert_allclose(found, expected, atol=1e-7)
    np.testing.assert_array_equal(explain_func(model, x, CLASSES, method="gradient", softmax=False),
                                  by_hand(model, x, CLASSES))  # fmt: skip
    assert np.abs(found - by_hand(model, x, CLASSES)).max() > 1e-3


def test_a_softmax_at_the_end_is_left_out_when_asked():
    inner, x = net(), images()
    model = nn.Sequential(nn.Sequential(inner, nn.Sequential(nn.Softmax(-1))))
    names = [name for name, _ in model.named_modules()]
    found = explain_func(model, x, CLASSES, method="gradient", softmax=False)
    np.testing.assert_array_equal(found, by_hand(inner, x, CLASSES))
    for kept in (None, True):
        found = explain_func(model, x, CLASSES, method="gradient", softmax=kept)
        np.testing.assert_array_equal(found, by_hand(model, x, CLASSES))
    assert [name for name, _ in model.named_modules()] == names
    assert isinstance(list(model.modules())[-1], nn.Softmax)


def test_with_softmax_layers_keep_their_names():
    model, x = net(), images()
    found = explain_func(model, x, CLASSES, method="occlusion", softmax=True, unit_layer="4", unit_channel=0)
    np.testing.assert_allclose(found, by_hand(nn.Sequential(model, nn.Softmax(-1)), x, CLASSES, "occlusion"), atol=1e-7)


@pytest.mark.parametrize("softmax", [None, True, False])
def test_the_model_stays_as_it_was(softmax):
    model, x = net().train(), images()
    model[1].inplace = True
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state, given = torch.random.get_rng_state(), x.copy()
    explain_func(model, x, CLASSES, method="guided_backprop", softmax=softmax)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training and not module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.random.get_rng_state(), state)
    np.testing.assert_array_equal(x, given)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"method": "gradeint"}, UnknownNameError, "gradient"),
        ({"method": "occlusion", "windw": 4}, UnknownOptionError, "window"),
        ({"methd": "gradient"}, UnknownOptionError, "methd"),
        ({"target": 3}, InputError, "takes no 'target'"),
        ({"inputs": np.zeros((1, 3, 16, 16), int)}, InputTypeError, "floats"),
        ({"inputs": np.zeros((3, 16), np.float32)}, InputError, r"\(3, 16\)"),
        ({"targets": np.array([0.0, 1.0, 2.0])}, InputTypeError, "ints"),
        ({"targets": np.array([0, 1])}, InputError, r"\(2,\)"),
        ({"targets": np.array([0, 1, 4])}, InputError, "out of range"),
        ({"reduce_axes": (0,)}, InputError, "samples"),
        ({"window": 2, "method": "occlusion", "xai_lib_kwargs": {"window": 3}}, InputError, "'window' is given twice"),
    ],
)
def test_wrong_arguments(change, error, says):
    given = {"model": net(), "inputs": images(), "targets": CLASSES, **change}
    with pytest.raises(error, match=says):
        explain_func(**given)
