"""Where the channels of a layer's output are: NCHW, NHWC, NTC and NC, inferred or given."""

from __future__ import annotations

import oracle
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import attribkit as ak

pytestmark = pytest.mark.usefixtures("one_thread")

METHODS = oracle.METHODS
X = torch.randn(2, 3, 8, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Tokens(nn.Module):
    """A transformer's shape: 2 x 2 patches as tokens behind prefix tokens, channels last."""

    def __init__(self, prefix):
        super().__init__()
        torch.manual_seed(2)
        self.num_prefix_tokens = prefix
        self.patches = nn.Conv2d(3, 5, 4, 4)
        self.prefix = nn.Parameter(torch.randn(1, prefix, 5))
        self.norm = nn.LayerNorm(5)
        self.fc = nn.Linear(5, 7)
        self.act = nn.GELU()
        self.mix = nn.Linear(4 + prefix, 4 + prefix)  # over tokens: later units see other patches too
        self.head = nn.Linear(7, 4)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.prefix.expand(len(x), -1, -1), x], 1)
        x = self.act(self.fc(self.norm(x)))
        x = x + self.mix(x.transpose(1, 2)).transpose(1, 2)
        return self.head(x.mean(1))


class ChannelsLast(nn.Module):
    """A Swin's shape: maps with the channels last."""

    output_fmt = "NHWC"

    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.patches = nn.Conv2d(3, 4, 2, 2)
        self.norm = nn.LayerNorm(4)
        self.fc = nn.Linear(4, 6)
        self.act = nn.GELU()
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        x = self.patches(x).permute(0, 2, 3, 1)
        return self.head(self.act(self.fc(self.norm(x))).mean((1, 2)))


def same(found, reference):
    assert reference.values.any()
    torch.testing.assert_close(found.values, reference.values, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(found.scores, reference.scores, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("prefix", [0, 2])
@pytest.mark.parametrize("layout", [None, "NTC"])
def test_tokens(method, prefix, layout):
    net, x = Tokens(prefix).double().eval(), X[..., :8]  # 2 x 2 patches of 4 x 4 pixels
    for layer in ("norm", "fc"):
        for position in ("max", "all", prefix + 2):
            found = ak.attribute(net, x, method=method, target=ak.Unit(layer, 3, position, layout))
            same(found, oracle.explain(net, x, method, oracle.Place(layer, 3, position, "NTC")))
        # (row, column) of the patches is counted after the prefix tokens.
        by_place = ak.attribute(net, x, method=method, target=ak.Unit(layer, 3, (1, 0), layout))
        same(by_place, oracle.explain(net, x, method, oracle.Place(layer, 3, prefix + 2, "NTC")))
        assert by_place.values[..., 4:, :4].any()
        assert not by_place.values[..., :4, :].any()
        assert not by_place.values[..., 4:].any()


@pytest.mark.parametrize("method", METHODS)
def test_a_vision_transformers_patches_need_not_form_a_square(method):
    torch.manual_seed(4)
    net = VisionTransformer(img_size=(8, 12), patch_size=4, embed_dim=8, depth=1, num_heads=2, num_classes=4)
    net = net.double().eval()
    for position, token in (((1, 2), 6), ((1, 0), 4), ((0, 1), 2), (0, 0)):  # behind the class token
        found = ak.attribute(net, X, method=method, target=ak.Unit("blocks.0.mlp.fc1", 5, position))
        same(found, oracle.explain(net, X, method, oracle.Place("blocks.0.mlp.fc1", 5, token, "NTC")))


def test_the_token_of_an_activation_given_its_layout():
    net = Tokens(1).double().eval()
    for method in METHODS:
        found = ak.attribute(net, X[..., :8], method=method, target=ak.Unit("act", 2, 4, "NTC"))
        same(found, oracle.explain(net, X[..., :8], method, oracle.Place("act", 2, 4, "NTC")))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("layout", [None, "NHWC"])
def test_channels_last(method, layout):
    net = ChannelsLast().double().eval()
    for layer, channel in (("norm", 3), ("fc", 5), ("act", 4)):  # the model's output_fmt tells the activation's
        for position in ("max", "all", (3, 5)):
            found = ak.attribute(net, X, method=method, target=ak.Unit(layer, channel, position, layout))
            same(found, oracle.explain(net, X, method, oracle.Place(layer, channel, position, "NHWC")))
    corner = ak.attribute(net, X, method=method, target=ak.Unit("fc", 0, (3, 5), layout))
    assert corner.values[..., 6:, 10:].any()
    assert not corner.values[..., :6, :].any()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("layout", [None, "NCHW"])
def test_a_convolution_is_channels_first_also_in_a_channels_last_model(method, layout):
    net = ChannelsLast().double().eval()
    for position in ("max", (1, 5)):
        found = ak.attribute(net, X, method=method, target=ak.Unit("patches", 2, position, layout))
        same(found, oracle.explain(net, X, method, oracle.Place("patches", 2, position, "NCHW")))


@pytest.mark.parametrize("layout", [None, "NC"])
@pytest.mark.parametrize("position", ["max", "all"])
def test_vectors(layout, position):
    net = ChannelsLast().double().eval()
    for method in METHODS:
        found = ak.attribute(net, X, method=method, target=ak.Unit("head", 2, position, layout))
        same(found, oracle.explain(net, X, method, oracle.Place("head", 2, position, "NC")))


def test_a_given_layout_overrules():
    """Read as NCHW, a channels-last map's "channel" is a row."""
    net = ChannelsLast().double().eval()
    found = ak.attribute(net, X, method="gradient", target=ak.Unit("fc", 3, "max", "NCHW"))
    same(found, oracle.explain(net, X, "gradient", oracle.Place("fc", 3, "max", "NCHW")))
    assert not found.values[..., :6, :].any()
    inferred = ak.attribute(net, X, method="gradient", target=ak.Unit("fc", 3))
    assert (found.values - inferred.values).abs().max() > 1e-6


@pytest.mark.parametrize(
    ("layer", "channel", "position", "layout", "words"),
    [
        ("fc", 7, "max", None, ["7"]),
        ("fc", 0, 6, None, ["6"]),
        ("fc", 0, (2, 0), None, ["2"]),
        ("fc", 0, "max", "NCHW", ["NCHW"]),  # three dimensions cannot be NCHW
        ("fc", 0, "max", "NWHC", ["NWHC", "NHWC"]),
    ],
)
def test_places_beyond_the_tokens_are_refused(layer, channel, position, layout, words):
    net = Tokens(2).double().eval()
    with pytest.raises(ak.AttribkitError) as caught:
        ak.attribute(net, X[..., :8], method="gradient", target=ak.Unit(layer, channel, position, layout))
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)
