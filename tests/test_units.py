"""Unit targets: their seeds, their places, their layouts, and what a projection may not touch."""

from __future__ import annotations

import copy
from collections import OrderedDict

import oracle
import pytest
import torch
from torch import nn

import attribkit as ak

pytestmark = pytest.mark.usefixtures("one_thread")

METHODS = oracle.METHODS


def small_net():
    torch.manual_seed(5)
    net = nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(2, 3, 3, padding=1),
            bn1=nn.BatchNorm2d(3),
            relu1=nn.ReLU(inplace=True),
            pool1=nn.MaxPool2d(3, 2),  # overlapping windows
            conv2=nn.Conv2d(3, 4, 2, stride=(1, 2), padding=(0, 1)),
            gelu2=nn.GELU(),
            pool2=nn.AvgPool2d((2, 1)),
            flatten=nn.Flatten(),
            fc3=nn.Linear(8, 6),
            relu3=nn.ReLU(),
            fc4=nn.Linear(6, 5),
        )
    )
    for module in net:
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.normal_(module.bias, std=0.2)
    nn.init.uniform_(net.bn1.running_var, 0.5, 2)
    nn.init.uniform_(net.bn1.weight, 0.5, 2)
    x = torch.randn(2, 2, 7, 6, dtype=torch.float64)
    return net.double().eval(), x


NET, X = small_net()
LAYERS = [name for name, _ in NET.named_children() if name != "flatten"]


def outputs_of(net, x):
    outputs = {}
    with torch.no_grad():
        for name, module in net.named_children():
            x = module(x.clone())
            outputs[name] = x.clone()
    return outputs


def receptive_fields(net, x):
    """For each layer [C, (h, w,) H, W]: can the pixel reach the unit at all?

    With every weight 1 and no negative number nothing can cancel, so that a unit answers to an impulse if and only if
    some path leads to it.
    """
    net = copy.deepcopy(net)
    for module in net:
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
    net.bn1.reset_running_stats()
    net.bn1.reset_parameters()
    height, width = x.shape[2:]
    impulses = torch.eye(height * width).double().view(-1, 1, height, width).expand(-1, x.shape[1], -1, -1)
    return {
        name: (output > 0).movedim(0, -1).unflatten(-1, (height, width))
        for name, output in outputs_of(net, impulses).items()
    }


OUTPUTS, FIELDS = outputs_of(NET, X), receptive_fields(NET, X)


def places(layer):
    shape = OUTPUTS[layer].shape
    if len(shape) == 2:
        return ["max"]
    return [(row, column) for row in range(shape[2]) for column in range(shape[3])]


def test_the_fields_are_fields():
    assert FIELDS["conv1"][0, 3, 3].nonzero().tolist() == [[y, x] for y in (2, 3, 4) for x in (2, 3, 4)]
    assert FIELDS["conv1"][0, 0, 0].sum() == 4
    assert FIELDS["pool1"][1, 0, 0].sum() == 16  # rows and columns 0 to 3
    assert not FIELDS["conv2"].all()
    assert FIELDS["fc3"].all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("layer", LAYERS)
def test_every_unit_of_every_layer(layer, method):
    """Equal to the oracle, zero outside the unit's receptive field, and the score is the unit's value."""
    layout = "NC" if OUTPUTS[layer].dim() == 2 else "NCHW"
    alive = inside = 0
    for channel in range(OUTPUTS[layer].shape[1]):
        for position in places(layer):
            found = ak.attribute(NET, X, method=method, target=ak.Unit(layer, channel, position))
            reference = oracle.explain(NET, X, method, oracle.Place(layer, channel, position, layout))
            at = position if layout == "NCHW" else ()
            torch.testing.assert_close(found.values, reference.values, rtol=1e-10, atol=1e-13)
            torch.testing.assert_close(found.scores, OUTPUTS[layer][(slice(None), channel, *at)], rtol=1e-12, atol=0)
            outside = ~FIELDS[layer][(channel, *at)]
            assert not found.values[..., outside].any(), (channel, position)
            inside += int((found.values != 0).sum())
            alive += bool(found.values.any())
    assert alive > 0
    assert inside > 0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("layer", [layer for layer in LAYERS if OUTPUTS[layer].dim() == 4])
@pytest.mark.parametrize("position", ["max", "all"])
def test_strongest_and_whole_map(layer, method, position):
    for channel in range(OUTPUTS[layer].shape[1]):
        found = ak.attribute(NET, X, method=method, target=ak.Unit(layer, channel, position))
        reference = oracle.explain(NET, X, method, oracle.Place(layer, channel, position))
        torch.testing.assert_close(found.values, reference.values, rtol=1e-10, atol=1e-13)
        feature_map = OUTPUTS[layer][:, channel].flatten(1)
        expected = feature_map.amax(1) if position == "max" else feature_map.sum(1)
        torch.testing.assert_close(found.scores, expected, rtol=1e-12, atol=1e-14)


def test_max_is_the_default_and_each_samples_own():
    flat = OUTPUTS["conv1"][:, 0].flatten(1).argmax(1)
    assert flat[0] != flat[1]
    found = ak.attribute(NET, X, method="gradient", target=ak.Unit("conv1", 0))
    for sample in range(2):
        at = divmod(int(flat[sample]), 6)
        alone = ak.attribute(NET, X, method="gradient", target=ak.Unit("conv1", 0, at))
        assert torch.equal(found.values[sample], alone.values[sample])


@pytest.mark.parametrize("method", METHODS)
def test_the_first_of_equal_maxima(method):
    net = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.ReLU()).double()
    nn.init.constant_(net[0].weight, 2.0)
    x = torch.tensor([[[[1.0, 3.0, 0.0], [3.0, 1.0, 3.0]]], [[[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]]]).double()
    found = ak.attribute(net, x, method=method, target=ak.Unit("0", 0))
    weight = 12.0 if method == "deconvnet" else 2.0  # deconvnet starts from the activation 6
    assert found.values[0, 0].tolist() == [[0, weight, 0], [0, 0, 0]]
    assert found.values[1, 0].tolist() == [[0.0 if method == "deconvnet" else 2.0, 0, 0], [0, 0, 0]]


def test_seeds():
    """deconvnet starts from the activation, the others from 1, and the unit's own rectifier and pool are inverted."""
    net = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.ReLU(), nn.MaxPool2d((1, 2))).double()
    nn.init.constant_(net[0].weight, 3.0)
    x = torch.tensor([[[[1.0, 2.0, -1.0, -5.0]]]], dtype=torch.float64)

    def values(method, layer, position):
        return ak.attribute(net, x, method=method, target=ak.Unit(layer, 0, position)).values.flatten().tolist()

    assert values("gradient", "2", (0, 0)) == [0.0, 3.0, 0.0, 0.0]
    assert values("deconvnet", "2", (0, 0)) == [0.0, 18.0, 0.0, 0.0]
    assert values("deconvnet", "1", "all") == [9.0, 18.0, 0.0, 0.0]
    assert values("guided_backprop", "1", "all") == [3.0, 3.0, 0.0, 0.0]
    assert values("guided_backprop", "1", (0, 3)) == [0.0, 0.0, 0.0, 0.0]  # its own ReLU is closed
    assert values("deconvnet", "0", (0, 3)) == [0.0, 0.0, 0.0, -45.0]


@pytest.mark.parametrize("act", [nn.ReLU(inplace=True), nn.SiLU(inplace=True), nn.Hardtanh(0, 1, inplace=True)])
@pytest.mark.parametrize("method", [*METHODS, "occlusion"])
def test_a_following_operation_in_place_does_not_change_the_unit(act, method):
    torch.manual_seed(1)
    conv = nn.Conv2d(2, 3, 3)
    in_place = nn.Sequential(conv, act, nn.Flatten(), nn.LazyLinear(2)).double()
    x = torch.randn(2, 2, 5, 5, dtype=torch.float64)
    in_place(x)
    aside = copy.deepcopy(in_place)
    aside[1].inplace = False
    with torch.no_grad():
        before = conv(x)[:, 1]
    assert (before < 0).any()
    for position in ("max", "all", (2, 1)):
        unit = ak.Unit("0", 1, position)
        found = ak.attribute(in_place, x, method=method, target=unit)
        expected = ak.attribute(aside, x, method=method, target=unit)
        assert torch.equal(found.values, expected.values)
        assert torch.equal(found.scores, expected.scores)
        if position == (2, 1):
            torch.testing.assert_close(found.scores, before[:, 2, 1], rtol=1e-12, atol=0)


@pytest.mark.parametrize("layer", ["conv2", "fc3"])
def test_project_is_attribute_for_each_channel(layer):
    channels = [2, 0, 3]
    for method in METHODS:
        together = ak.project(NET, X, layer, channels, method=method)
        assert together.values.shape == (2, 3, 2, 7, 6)
        for index, channel in enumerate(channels):
            alone = ak.attribute(NET, X, method=method, target=ak.Unit(layer, channel))
            torch.testing.assert_close(together.values[:, index], alone.values, rtol=1e-12, atol=1e-14)
    assert torch.equal(
        ak.project(NET, X, layer, channels).values, ak.project(NET, X, layer, channels, method="deconvnet").values
    )


@pytest.mark.parametrize(
    ("unit", "words"),
    [
        (ak.Unit("conv3", 0), ["conv3", "conv1", "conv2"]),
        (ak.Unit("relu", 0), ["relu", "relu1"]),
        (ak.Unit("conv2", 4), ["conv2", "4"]),
        (ak.Unit("fc4", 17), ["fc4", "17", "5"]),
        (ak.Unit("conv2", 0, (2, 9)), ["conv2", "9"]),
        (ak.Unit("conv1", 0, (7, 0)), ["conv1", "7", "6"]),
    ],
)
@pytest.mark.parametrize("method", ["deconvnet", "occlusion"])
def test_unknown_places_are_refused(unit, words, method):
    with pytest.raises(ak.AttribkitError) as caught:
        ak.attribute(NET, X, method=method, target=unit)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("position", ["strongest", (1,), (1, 2, 3), 1.5])
def test_unknown_positions_are_refused(position):
    with pytest.raises(ak.AttribkitError, match="position"):
        ak.attribute(NET, X, method="deconvnet", target=ak.Unit("conv1", 0, position))
