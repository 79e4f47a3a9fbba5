"""Which layers are taken where none is named."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from attribkit.errors import ModelError
from attribkit.features import occlusion_study
from attribkit.features._observe import before_classifier, first_layer, last_linear, top_maps
from attribkit.models import zfnet

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
SWIN = {"img_size": 64, "embed_dim": 8, "depths": (1, 2), "num_heads": (1, 2), "window_size": 4}


def built(name, size=64, **options):
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=5, **options).eval(), torch.randn(1, 3, size, size)


def test_zfnet_gives_the_papers_layers():
    torch.manual_seed(0)
    model, image = zfnet(5, img_size=64, width=0.05), torch.randn(1, 3, 64, 64)
    assert (first_layer(model, image), before_classifier(model, image)) == ("pool1", "relu7")
    assert (top_maps(model, image, pooled=True), last_linear(model, image)) == ("pool5", "fc7")
    assert top_maps(model, image, pooled=False) == "relu5"


@pytest.mark.parametrize(
    ("name", "options", "size", "layer"),
    [
        ("resnet10t", {}, 64, "layer4.0.act2"),
        ("mobilenetv3_small_050", {}, 64, "blocks.5.0.bn1.act"),
        ("mobilenetv4_conv_small_035", {}, 64, "blocks.4.0.bn1.act"),
        ("ghostnet_050", {}, 64, "blocks.9.0.bn1.act"),
        ("convnext_atto", {}, 64, "stages.3.blocks.1"),
        ("vit_tiny_patch16_224", VIT, 32, "blocks.1"),
        ("swin_tiny_patch4_window7_224", SWIN, 64, "layers.1.blocks.1"),
        ("inception_v3", {}, 139, "Mixed_7c"),
    ],
)
def test_the_top_layer_has_maps_and_all_branches(name, options, size, layer):
    model, image = built(name, size, **options)
    assert top_maps(model, image, pooled=False) == top_maps(model, image, pooled=True) == layer


class Squeezed(nn.Module):
    """Maps, a squeeze and excitation inside them, then a head of 1×1 convolutions."""

    def __init__(self):
        super().__init__()
        self.conv, self.relu, self.pool = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2)
        self.reduce, self.expand = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)
        self.fc1, self.act1 = nn.Conv2d(8, 12, 7), nn.ReLU()
        self.fc2, self.act2 = nn.Conv2d(12, 12, 1), nn.ReLU()
        self.fc3 = nn.Linear(12, 4)

    def forward(self, x):
        x = self.pool(self.relu(self.conv(x)))
        x = x * self.expand(torch.relu(self.reduce(x.mean((2, 3), keepdim=True)))).sigmoid()
        return self.fc3(self.act2(self.fc2(self.act1(self.fc1(x)))).flatten(1))


def test_maps_of_one_position_are_fully_connected_layers():
    torch.manual_seed(0)
    model, image = Squeezed().eval(), torch.randn(1, 3, 16, 16)
    assert (top_maps(model, image, pooled=False), top_maps(model, image, pooled=True)) == ("relu", "pool")
    assert last_linear(model, image) == "fc2"
    model.fc2, model.fc1 = nn.Identity(), nn.Conv2d(8, 12, 7)
    assert last_linear(model, image) == "fc1"


def test_squeezed_channels_are_no_fully_connected_layer():
    model, image = built("legacy_seresnet18")
    assert last_linear(model, image) == before_classifier(model, image) == "global_pool.pool"


def test_a_sum_keeps_its_name_where_no_module_returns_it():
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU())
            self.after = nn.LayerNorm(8)

        def forward(self, x):
            return self.after(x + self.block(x)).mean((2, 3))

    assert top_maps(Last().eval(), torch.randn(1, 3, 8, 8), pooled=False) == "add"


def test_without_maps_the_last_convolution_or_an_error():
    image = torch.randn(1, 3, 8, 8)
    plain = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 5, 1), nn.Flatten()
    )
    assert top_maps(plain.eval(), image, pooled=False) == "1"
    single = nn.Sequential(nn.Conv2d(3, 4, 8), nn.ReLU(), nn.Flatten(), nn.Linear(4, 5))
    assert top_maps(single.eval(), image, pooled=False) == "0"
    with pytest.raises(ModelError, match="name the layer"):
        top_maps(nn.Sequential(nn.Flatten(), nn.Linear(192, 5)).eval(), image, pooled=False)


@pytest.mark.parametrize(
    ("name", "options", "size"), [("vit_tiny_patch16_224", VIT, 32), ("swin_tiny_patch4_window7_224", SWIN, 64)]
)
def test_the_top_layer_of_tokens_serves_an_occlusion_study(name, options, size):
    model, image = built(name, size, **options)
    found = occlusion_study(model, image, window=size // 2, stride=size // 2)
    assert found.activity.shape == (2, 2)
    assert abs(found.projection).max() > 0
