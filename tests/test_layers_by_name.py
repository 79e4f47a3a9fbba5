"""Units at named layers of timm's architectures: tokens, maps with the channels last or first, functional calls."""

from __future__ import annotations

import math
import re

import oracle
import pytest
import torch
from timm.models import (
    cait,
    convnext,
    efficientnet,
    mlp_mixer,
    resnet,
    swin_transformer,
    vision_transformer,
    vision_transformer_hybrid,
)
from torch import nn

import attribkit as ak

pytestmark = pytest.mark.usefixtures("one_thread")
X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 5}
NETS = {
    "vit": lambda: vision_transformer.VisionTransformer(**VIT),
    "vit with registers": lambda: vision_transformer.VisionTransformer(**VIT, reg_tokens=2),
    "vit without class token": lambda: vision_transformer.VisionTransformer(
        **VIT, class_token=False, global_pool="avg"
    ),
    "cait": lambda: cait.Cait(img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=5),
    "mixer": lambda: mlp_mixer.MlpMixer(img_size=32, patch_size=8, embed_dim=16, num_blocks=2, num_classes=5),
    "swin": lambda: swin_transformer.SwinTransformer(
        img_size=32, patch_size=2, window_size=4, embed_dim=8, depths=(2, 2), num_heads=(2, 2), num_classes=5
    ),
    "convnext": lambda: convnext.ConvNeXt(depths=(1, 2, 1, 1), dims=(8, 16, 16, 16), num_classes=5),
    "convnext with conv mlps": lambda: convnext.ConvNeXt(
        depths=(1, 2, 1, 1), dims=(8, 16, 16, 16), num_classes=5, conv_mlp=True
    ),
    "hybrid": lambda: hybrid(),  # defined below
    "resnet": lambda: resnet.ResNet(resnet.Bottleneck, (1, 1, 1, 1), num_classes=5, channels=(8, 8, 16, 16)),
}


def hybrid():
    """A ResNet's second stage cut into patches of one position each."""

    def embed(**kw):
        backbone = resnet.resnet10t(features_only=True, out_indices=(2,))
        return vision_transformer_hybrid.HybridEmbed(backbone, **{**kw, "patch_size": 1})

    return vision_transformer.VisionTransformer(**VIT, embed_layer=embed)


_built: dict[str, nn.Module] = {}


def build(name):
    """Return the net in float64, no parameter at zero or one (an untrained head or scale hides what is below)."""
    if name not in _built:
        torch.manual_seed(0)
        net = NETS[name]().double().eval()
        for parameter in net.parameters():
            if parameter.ndim < 2 or not parameter.any() or parameter.std() < 1e-3:
                nn.init.normal_(parameter, 0.3 if parameter.ndim < 2 else 0.0, 0.2)
        _built[name] = net
    return _built[name]


# net, layer, output shape, layout, number of prefix tokens
PLACES = [
    ("vit", "blocks.1", (2, 17, 16), "NTC", 1),
    ("vit", "blocks.0.mlp.act", (2, 17, 64), "NTC", 1),
    ("vit", "blocks.0.attn.proj", (2, 17, 16), "NTC", 1),
    ("vit", "patch_embed", (2, 16, 16), "NTC", 0),
    ("vit", "patch_embed.proj", (2, 16, 4, 4), "NCHW", 0),
    ("vit", "norm", (2, 17, 16), "NTC", 1),
    ("vit", "head", (2, 5), "NC", 0),
    ("vit with registers", "blocks.0.norm2", (2, 19, 16), "NTC", 3),
    ("vit with registers", "blocks.1.mlp", (2, 19, 16), "NTC", 3),
    ("vit without class token", "blocks.1", (2, 16, 16), "NTC", 0),
    ("cait", "blocks.0.mlp.fc1", (2, 16, 64), "NTC", 0),
    ("cait", "blocks.1", (2, 16, 16), "NTC", 0),
    ("cait", "norm", (2, 17, 16), "NTC", 1),
    ("mixer", "blocks.0", (2, 16, 16), "NTC", 0),
    ("mixer", "blocks.1.mlp_channels.act", (2, 16, 64), "NTC", 0),
    ("swin", "layers.0", (2, 16, 16, 8), "NHWC", 0),
    ("swin", "layers.1", (2, 8, 8, 16), "NHWC", 0),
    ("swin", "layers.1.blocks.1", (2, 8, 8, 16), "NHWC", 0),
    ("swin", "layers.0.blocks.1.norm1", (2, 16, 16, 8), "NHWC", 0),
    ("swin", "layers.1.blocks.0.mlp.act", (2, 64, 64), "NTC", 0),
    ("swin", "patch_embed", (2, 16, 16, 8), "NHWC", 0),
    ("swin", "patch_embed.proj", (2, 8, 16, 16), "NCHW", 0),
    ("convnext", "stages.0", (2, 8, 8, 8), "NCHW", 0),
    ("convnext", "stages.1", (2, 16, 4, 4), "NCHW", 0),
    ("convnext", "stages.1.blocks.0", (2, 16, 4, 4), "NCHW", 0),
    ("convnext", "stages.1.blocks.0.mlp.act", (2, 4, 4, 64), "NHWC", 0),
    ("convnext", "stages.1.blocks.0.mlp.fc1", (2, 4, 4, 64), "NHWC", 0),
    ("convnext", "stages.1.blocks.0.mlp", (2, 4, 4, 16), "NHWC", 0),
    ("convnext", "stages.1.blocks.0.norm", (2, 4, 4, 16), "NHWC", 0),
    ("convnext", "stages.1.blocks.0.conv_dw", (2, 16, 4, 4), "NCHW", 0),
    ("convnext with conv mlps", "stages.1.blocks.0.mlp.act", (2, 64, 4, 4), "NCHW", 0),
    ("hybrid", "patch_embed.backbone.layer2", (2, 128, 4, 4), "NCHW", 0),
    ("hybrid", "blocks.0.mlp.act", (2, 17, 64), "NTC", 1),
    ("resnet", "layer2.0.act2", (2, 8, 4, 4), "NCHW", 0),
    ("resnet", "layer1", (2, 32, 8, 8), "NCHW", 0),
    ("resnet", "fc", (2, 5), "NC", 0),
]


@pytest.mark.parametrize(("name", "layer", "shape", "layout", "prefix"), PLACES)
def test_units_at_a_named_layer(name, layer, shape, layout, prefix):
    """The layout is inferred and reported, and the map is the oracle's."""
    net = build(name)
    assert ak.inspect(net, X).shapes[layer] == shape
    channel = shape[layout.index("C")] - 2
    for method in oracle.METHODS:
        for position in ("max", "all"):
            found = ak.attribute(net, X, method=method, target=ak.Unit(layer, channel, position))
            assert found.target.layout == layout
            same(found, oracle.explain(net, X, method, oracle.Place(layer, channel, position, layout)))
    if layout == "NC":
        return
    size = math.prod(shape[i] for i, letter in enumerate(layout) if letter in "HWT")
    columns = shape[layout.index("W")] if "W" in layout else math.isqrt(size - prefix)
    token = prefix + 1 * columns + 2  # row 1, column 2, counted after the prefix tokens
    place = token if layout == "NTC" else (1, 2)
    reference = oracle.explain(net, X, "gradient", oracle.Place(layer, channel, place, layout))
    for position in ((1, 2), token) if layout == "NTC" else ((1, 2),):
        found = ak.attribute(net, X, method="gradient", target=ak.Unit(layer, channel, position))
        same(found, reference)
    given = ak.attribute(net, X, method="gradient", target=ak.Unit(layer, channel, (1, 2), layout))
    same(given, reference)


def same(found, reference):
    scale = reference.values.abs().max()
    assert scale > 0
    assert (found.values - reference.values).abs().max() <= 1e-9 * scale
    torch.testing.assert_close(found.scores, reference.scores, rtol=1e-9, atol=1e-12)


def test_the_prefix_token_itself():
    net = build("vit with registers")
    for token in range(3):
        found = ak.attribute(net, X, method="gradient", target=ak.Unit("blocks.0", 4, token))
        same(found, oracle.explain(net, X, "gradient", oracle.Place("blocks.0", 4, token, "NTC")))


@pytest.mark.parametrize("name", ["vit", "swin"])
def test_maps_that_are_no_squares(name):
    """(row, column) follows the image's own shape at every stage, also where the number of tokens is a square."""
    torch.manual_seed(0)
    if name == "vit":
        net = vision_transformer.VisionTransformer(**{**VIT, "img_size": (16, 64)})
        layer, rows, columns, prefix = "blocks.0.mlp.act", 2, 8, 1
    else:
        net = swin_transformer.SwinTransformer(
            img_size=(16, 64), patch_size=2, window_size=4, embed_dim=8, depths=(1, 1), num_heads=(2, 2), num_classes=5
        )
        layer, rows, columns, prefix = "layers.1.blocks.0.mlp.act", 4, 16, 0
    net = net.double().eval()
    x = torch.randn(1, 3, 16, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for row, column in ((0, 1), (rows - 1, columns - 1), (1, 3)):
        found = ak.attribute(net, x, method="gradient", target=ak.Unit(layer, 3, (row, column)))
        token = prefix + row * columns + column
        same(found, oracle.explain(net, x, "gradient", oracle.Place(layer, 3, token, "NTC")))
    with pytest.raises(ak.AttribkitError, match=f"{rows}×{columns}"):
        ak.attribute(net, x, method="gradient", target=ak.Unit(layer, 3, (rows, 0)))


def test_a_vision_transformer_of_any_image_size():
    """The grid is that of the image given, not of the one the model was made for."""
    torch.manual_seed(0)
    net = vision_transformer.VisionTransformer(**VIT, dynamic_img_size=True).double().eval()
    x = torch.randn(1, 3, 16, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = ak.attribute(net, x, method="gradient", target=ak.Unit("blocks.0", 3, (1, 2)))
    same(found, oracle.explain(net, x, "gradient", oracle.Place("blocks.0", 3, 1 + 8 + 2, "NTC")))


def test_tokens_without_a_grid():
    net = build("vit").patch_embed  # something to hold; the model below folds its tokens into an odd number

    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.norm, self.head = net, nn.LayerNorm(16).double(), nn.Linear(16, 3).double()

        def forward(self, x):
            return self.head(self.norm(self.embed(x)[:, :11]).mean(1))

    odd = Odd().eval()
    assert ak.attribute(odd, X, method="gradient", target=ak.Unit("norm", 2, 10)).values.any()
    with pytest.raises(ak.AttribkitError, match="no grid"):
        ak.attribute(odd, X, method="gradient", target=ak.Unit("norm", 2, (0, 0)))


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("position", ["max", "all", 3])
def test_windows_are_no_samples(position, count):
    """Inside a window attention the rows are windows: a unit there belongs to no sample, and is refused."""
    net, x = build("swin"), X[:count]
    layer = "layers.0.blocks.0.attn.qkv"
    with pytest.raises(ak.AttribkitError, match=re.escape(f"{layer!r} has output ({16 * count}, 16, 24) for {count} ")):
        ak.attribute(net, x, target=ak.Unit(layer, 3, position))
    with pytest.raises(ak.AttribkitError, match="rows are not the samples"):
        ak.project(net, x, layer, [3, 4], position=position)


class Called(nn.Module):
    """One module and one function called three times each, on maps of three sizes."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.conv, self.act, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.LeakyReLU(), nn.Linear(3, 4)

    def forward(self, x):
        for _ in range(3):
            x = self.act(self.conv(x))
            x = nn.functional.avg_pool2d(nn.functional.gelu(x), 2)
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("method", oracle.METHODS)
def test_each_call_has_a_name_of_its_own(method):
    net = Called().double().eval()
    shapes = ak.inspect(net, X).shapes
    for call, suffix in enumerate(("", "_1", "_2")):
        side = 32 >> call
        assert shapes["act" + suffix] == (2, 3, side, side)
        found = ak.attribute(net, X, method=method, target=ak.Unit("act" + suffix, 2))
        same(found, oracle.explain(net, X, method, oracle.Place("act", 2, call=call)))
        pooled = ak.attribute(net, X, method=method, target=ak.Unit("avg_pool2d" + suffix, 1, (0, 1)))
        assert shapes["avg_pool2d" + suffix] == (2, 3, side // 2, side // 2)
        assert pooled.values.any() or method == "deconvnet"  # whose signal is the unit's own, perhaps negative value
        if method == "gradient":
            x = X.clone().requires_grad_()
            maps = x
            for _ in range(call + 1):
                maps = nn.functional.avg_pool2d(nn.functional.gelu(net.act(net.conv(maps))), 2)
            (expected,) = torch.autograd.grad(maps[:, 1, 0, 1].sum(), x)
            torch.testing.assert_close(pooled.values, expected)
    with pytest.raises(ak.AttribkitError, match="'act_2'"):
        ak.attribute(net, X, target=ak.Unit("act_3", 0))


def test_efficientnets_stages():
    torch.manual_seed(0)
    net = efficientnet.tf_efficientnet_lite0(num_classes=5).double().eval()
    inspection = ak.inspect(net, X)
    assert inspection.useful_layers == ["blocks.0", "blocks.1", "blocks.2", "blocks.4", "blocks.6"]
    for layer in inspection.useful_layers:
        found = ak.attribute(net, X, method="deconvnet", target=ak.Unit(layer, 3, "all"))
        assert found.target.layout == "NCHW"
        same(found, oracle.explain(net, X, "deconvnet", oracle.Place(layer, 3, "all")))
