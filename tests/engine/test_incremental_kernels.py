"""The dense kernels of incremental inference against torch's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import attribkit as ak
from attribkit.engine.incremental import kernels, rewrite, stages, winograd
from attribkit.engine.incremental.graph import compare
from attribkit.engine.incremental.record import record

pytestmark = pytest.mark.usefixtures("one_thread")

onednn = pytest.mark.skipif(
    not kernels._has_onednn(torch.zeros(1)), reason="this torch has no operations of oneDNN's with activations"
)


def normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@onednn
@pytest.mark.parametrize("size", [(3, 3), (4, 6), (5, 8), (7, 7)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_tiles_are_the_convolution(monkeypatch, size, with_bias):
    monkeypatch.setattr(winograd, "_TILES", 20)  # several parts, the last of fewer samples
    x, weight, bias = normal(5, 6, *size), normal(7, 6, 3, 3), normal(7) if with_bias else None
    x = x.contiguous(memory_format=torch.channels_last)
    expected = F.conv2d(x.double(), weight.double(), None if bias is None else bias.double())
    for act in (torch.relu_, F.gelu):  # one in place, one not
        found = winograd.Winograd(weight, bias)(x, act)
        assert found.shape == expected.shape
        torch.testing.assert_close(
            found, act(expected.clone()).float(), rtol=0, atol=2e-6 * float(expected.abs().max())
        )


@onednn
def test_tiles_round_no_worse_than_the_definition():
    x, weight = normal(8, 128, 10, 10), normal(64, 128, 3, 3)
    x, weight = (t.contiguous(memory_format=torch.channels_last) for t in (x, weight))
    exact = F.conv2d(x.double(), weight.double())
    tiled = winograd.Winograd(weight, None)(x, lambda y: y)
    assert (tiled - exact).abs().max() < 1.5 * (F.conv2d(x, weight) - exact).abs().max()


def test_tiles_pay_for_many_channels_and_places_alone():
    large = torch.empty(256, 256, 3, 3, device="meta")
    assert winograd.pays((16, 256, 14, 14), large)
    assert not winograd.pays((1, 256, 14, 14), large)  # too few tiles
    assert not winograd.pays((400, 256, 3, 3), large)  # one output of each tile's four is used
    assert not winograd.pays((16, 8, 14, 14), torch.empty(8, 8, 3, 3, device="meta"))


@onednn
@pytest.mark.parametrize("padding", [(0, 0), (1, 2)])
def test_a_convolution_that_goes_in_tiles(monkeypatch, padding):
    calls = []
    monkeypatch.setattr(winograd, "pays", lambda *arguments: calls.append(arguments) or True)
    x, weight, bias = normal(2, 4, 6, 5), normal(3, 4, 3, 3), normal(3)
    kernel = kernels.Convolution(weight, bias, (1, 1), padding, (1, 1), 1)
    kernel.act = ("hardtanh", [0.0, 6.0], "")
    torch.testing.assert_close(kernel(x), F.relu6(F.conv2d(x, weight, bias, 1, padding)), rtol=1e-5, atol=1e-5)
    strided = kernels.Convolution(weight, bias, (2, 2), padding, (1, 1), 1)
    torch.testing.assert_close(strided(x), F.conv2d(x, weight, bias, 2, padding), rtol=1e-5, atol=1e-5)
    assert len(calls) == 1


def program(function):
    x = normal(3, 2, 8, 8)
    graph = compare(record(function, x[:2].clone()), record(function, x.clone()))
    rewrite.rewrite(graph)
    return graph


WEIGHT, BIAS = normal(5, 128), normal(5)


@pytest.mark.parametrize(
    "layer",
    [
        lambda x: F.linear(x, WEIGHT, BIAS),
        lambda x: F.linear(x, WEIGHT),
        lambda x: torch.addmm(BIAS, x, WEIGHT.t()),
    ],
)
def test_linear_layers_are_recognised(layer):
    graph = program(lambda x: layer(x.flatten(1)).relu())
    (node,) = (node for node in graph.nodes if node.op == "linear")
    rows = normal(4, 128)
    assert node is graph.nodes[-1]  # the activation has gone into it
    torch.testing.assert_close(node.params["kernel"](rows), layer(rows).relu(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "layer",
    [
        lambda x: torch.addmm(BIAS, x, WEIGHT.t(), alpha=2),
        lambda x: torch.addmm(BIAS, x, WEIGHT.t(), beta=0.5),
        lambda x: torch.mm(x, WEIGHT.t().contiguous()),  # laid out the other way: not as a linear layer has it
        lambda x: torch.addmm(x[:, :5], x, WEIGHT.t()),
        lambda x: torch.mm(x, x.t()).sum(1, keepdim=True) * 0 + x,
    ],
)
def test_other_products_are_left_as_they_are(layer):
    assert all(node.op == "call" for node in program(lambda x: layer(x.flatten(1))).nodes)


@pytest.mark.parametrize("part", [1, 5000, 10**9])
def test_parts_of_whole_maps(monkeypatch, part):
    """However many positions go at once where maps are whole, the scores are the model's."""
    monkeypatch.setattr(stages, "PART", part)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.InstanceNorm2d(4), nn.Conv2d(4, 32, 1), nn.ReLU(), nn.Conv2d(32, 4, 3, 2),
        nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 5),
    ).eval()  # fmt: skip
    x, options = normal(1, 3, 24, 24), {"target": 1, "window": 6, "stride": 4}
    ours = ak.attribute(model, x, "occlusion", engine="incremental", **options)
    full = ak.attribute(model, x, "occlusion", engine="full", **options)
    assert ours.extras["incremental"].all()
    torch.testing.assert_close(ours.extras["score_map"], full.extras["score_map"], rtol=0, atol=1e-5)


def test_stages_follow_the_size_of_maps():
    wide, narrow = normal(64, 2, 1, 1), normal(2, 64, 1, 1)

    def forward(x):
        y = F.conv2d(F.conv2d(x, wide).relu(), narrow)
        return F.max_pool2d(y, 2).cumsum(1).cumsum(2).mean((2, 3))

    graph = program(forward)
    last_use = {i: n for n, node in enumerate(graph.nodes) for i in node.inputs}
    last_use.update({i: len(graph.nodes) for i in graph.results()})
    found = stages.stages(graph, 0, len(graph.nodes), 1000, last_use)
    assert [first for first, _, _ in found] == [0, *(last for _, last, _ in found[:-1])]
    assert found[-1][1] == len(graph.nodes)
    assert found[0][2] == stages.PART // (64 * 8 * 8 * 4)  # the wide map's bytes
    assert found[-1][2] == 1000


class _Tokens(nn.Module):
    """A perceptron on tokens: the activation comes after a change of the shape."""

    def __init__(self, act, *, twice=False):
        super().__init__()
        self.patches, self.up, self.down = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 16), nn.Linear(16, 5)
        self.act, self.twice = act, twice

    def forward(self, x):
        up = self.up(self.patches(x).flatten(2).transpose(1, 2).contiguous())
        y = self.down(self.act(up))
        return y.mean(1) + up.mean((1, 2), keepdim=True)[:, 0] if self.twice else y.mean(1)


@pytest.mark.parametrize(
    ("act", "twice"),
    [
        *((act, twice) for act in (nn.GELU(), nn.GELU("tanh"), nn.ReLU(), nn.SiLU()) for twice in (False, True)),
        (nn.ReLU(inplace=True), False),
    ],
)
def test_an_activation_after_a_change_of_shape(act, twice):
    torch.manual_seed(0)
    model = _Tokens(act, twice=twice).eval()
    x = normal(5, 3, 16, 16)
    graph = compare(record(model, x[:2].clone()), record(model, x[2:].clone()))
    rewrite.rewrite(graph)
    fused = [node.params["kernel"].act for node in graph.nodes if node.op == "linear"]
    assert [found is not None for found in fused] == ([False, False] if twice else [True, False])
    found = ak.attribute(model, x[:1], "occlusion", window=4, stride=4, target=1, engine="incremental")
    full = ak.attribute(model, x[:1], "occlusion", window=4, stride=4, target=1, engine="full")
    assert bool(found.extras["incremental"].all())
    torch.testing.assert_close(found.extras["score_map"], full.extras["score_map"], rtol=1e-5, atol=1e-6)
