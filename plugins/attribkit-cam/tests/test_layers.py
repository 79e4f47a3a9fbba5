"""Any named layer, in any layout; the default; what is reported."""

import pytest
import timm
import torch
import torch.nn.functional as F
from attribkit_cam.layer import _token_grid
from torch import nn

import attribkit as ak
from attribkit.errors import InputError


def images(count=2, height=16, width=24, channels=3):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, channels, height, width, generator=generator, dtype=torch.float64)


class Net(nn.Module):
    """A convolution, the same maps channels last and as tokens, a head; with a class token before them if asked."""

    def __init__(self, prefix=0):
        super().__init__()
        self.num_prefix_tokens = prefix
        self.conv, self.last, self.tokens = nn.Conv2d(3, 6, 4, 4), nn.LayerNorm(6), nn.Linear(6, 5)
        self.head = nn.Linear(5, 4)
        self.token = nn.Parameter(torch.randn(1, prefix, 6))

    def forward(self, x):
        x = self.last(F.relu(self.conv(x)).permute(0, 2, 3, 1)).flatten(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        return self.head(torch.tanh(self.tokens(x)).mean(1))


def net(prefix=0):
    torch.manual_seed(0)
    return Net(prefix).double().eval()


def by_hand(model, x, layer, classes):
    """Return Grad-CAM at a layer of `Net`, with the maps as [N, K, h, w]."""
    value = F.relu(model.conv(x))
    if layer != "relu":
        value = model.last(value.permute(0, 2, 3, 1))
    maps = value.detach().requires_grad_()
    y = maps if layer != "relu" else model.last(maps.permute(0, 2, 3, 1))
    y = torch.cat([model.token.expand(len(x), -1, -1), y.flatten(1, 2)], 1)
    tokens = model.tokens(y)
    if layer == "tokens":
        maps = tokens.detach().requires_grad_()
        tokens = maps
    score = model.head(torch.tanh(tokens).mean(1)).gather(1, classes[:, None]).sum()
    gradient = torch.autograd.grad(score, maps)[0]
    prefix = model.num_prefix_tokens
    if layer == "last":
        maps, gradient = maps.permute(0, 3, 1, 2), gradient.permute(0, 3, 1, 2)
    elif layer == "tokens":
        maps, gradient = (t[:, prefix:].reshape(len(x), 4, 6, -1).permute(0, 3, 1, 2) for t in (maps, gradient))
    small = (gradient.mean((2, 3), keepdim=True) * maps).sum(1).clamp(min=0).detach()
    return small, F.interpolate(small[:, None], x.shape[2:], mode="bilinear", align_corners=False)[:, 0]


@pytest.mark.parametrize("prefix", [0, 1, 2])
@pytest.mark.parametrize("layer", ["relu", "last", "tokens"])
def test_layouts_need_no_reshape_function(layer, prefix):
    model, x, classes = net(prefix), images(), torch.tensor([1, 2])
    found = ak.attribute(model, x, "grad_cam", classes, layer=layer)
    small, large = by_hand(model, x, layer, classes)
    assert small.max() > 0
    assert torch.allclose(found.heatmap(), large, rtol=1e-9, atol=1e-12)
    assert torch.allclose(found.extras[f"map at {layer}"], small, rtol=1e-9, atol=1e-12)
    assert torch.equal(found.values[:, 0], found.values[:, 2])


@pytest.mark.parametrize(
    ("name", "size", "layer"),
    [
        ("resnet18", 64, "layer4.1.act2"),
        ("convnext_atto", 64, "stages.3.blocks.1.add"),
        ("vit_tiny_patch16_224", 64, "blocks.11.norm1"),
        ("swin_tiny_patch4_window7_224", 64, "norm"),
    ],
)
def test_the_default_layer_is_the_last_spatial_map(name, size, layer):
    torch.manual_seed(0)
    sized = {"img_size": size} if name.startswith(("vit", "swin")) else {}
    model = timm.create_model(name, num_classes=5, **sized).eval()
    x = torch.randn(3, 3, size, size)
    default = ak.attribute(model, x, "layer_cam", torch.tensor([0, 1, 2]))
    assert list(default.extras) == [f"map at {layer}"]
    assert torch.equal(default.values, ak.attribute(model, x, "layer_cam", default.target, layer=layer).values)
    assert default.values.abs().max() > 0


def test_a_unit_below_the_last_map_has_the_last_map_below_it():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU()).double().eval()
    found = ak.attribute(model, images(), "grad_cam", ak.Unit("2", 1, (1, 1)))
    assert list(found.extras) == ["map at 2"]


def test_a_network_without_maps_is_explained_at_the_image():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 24, 4)).double().eval(), images()
    found = ak.attribute(model, x, "layer_cam", 2)
    gradient = ak.attribute(model, x, "gradient", 2).values
    expected = (gradient.clamp(min=0) * x).sum(1).clamp(min=0)
    assert torch.allclose(found.extras["map at the image"], expected)
    assert torch.allclose(found.heatmap(), expected)


def test_guided_grad_cam_is_the_product():
    model, x = net(), images()
    found = ak.attribute(model, x, "guided_grad_cam", 1, layer="last")
    guided = ak.attribute(model, x, "guided_backprop", 1).values
    cam = ak.attribute(model, x, "grad_cam", 1, layer="last").heatmap()
    assert found.values.abs().max() > 0
    assert torch.allclose(found.values, guided * cam[:, None])


def test_score_cam_worked_out_mask_by_mask():
    model, x = net(), images()
    found = ak.attribute(model, x, "score_cam", 1, layer="relu")
    with torch.no_grad():
        maps = F.relu(model.conv(x))
        for i in range(len(x)):
            scores = []
            for k in range(6):
                mask = F.interpolate(maps[i : i + 1, k : k + 1], x.shape[2:], mode="bilinear", align_corners=False)
                mask = (mask - mask.min()) / (mask.max() - mask.min() + 1e-8)
                scores.append(model(x[i : i + 1] * mask)[0, 1])
            expected = (torch.stack(scores).softmax(0)[:, None, None] * maps[i]).sum(0).clamp(min=0)
            assert torch.allclose(found.extras["map at relu"][i], expected)


@pytest.mark.parametrize("name", ["grad_cam", "grad_cam_plus_plus", "layer_cam", "score_cam", "guided_grad_cam"])
def test_a_layer_that_is_none_or_no_map_is_refused(name):
    with pytest.raises(InputError, match="'nothing' is not called"):
        ak.attribute(net(), images(), name, 1, layer="nothing")
    with pytest.raises(InputError, match="which is no map"):
        ak.attribute(net(), images(), name, 1, layer="head")


def test_token_grids_have_the_images_proportions():
    class Two(nn.Module):
        num_prefix_tokens = 2

    wide, square = torch.zeros(1, 3, 64, 128), torch.zeros(1, 3, 64, 64)
    assert _token_grid(34, Two(), wide) == (2, 4, 8)
    assert _token_grid(17, nn.Identity(), square) == (1, 4, 4)
    assert _token_grid(16, nn.Identity(), square) == (0, 4, 4)
    assert _token_grid(23, nn.Identity(), square) is None


@pytest.mark.parametrize("target", [0, ak.Unit("relu", 1)])
def test_looking_at_a_layer_is_not_rewriting_it(target):
    model, x = net(), images()
    for method in ("grad_cam", "grad_cam_plus_plus", "layer_cam", "score_cam"):
        coverage = ak.attribute(model, x, method, target, layer="conv").coverage
        assert coverage.sentence == f"{method} rewrites no operation."
    guided = ak.attribute(model, x, "guided_grad_cam", target, layer="conv").coverage
    assert guided.sentence.startswith("guided_grad_cam rewrote the 1 rectifier")
    assert guided.kinds == ak.attribute(model, x, "guided_backprop", target).coverage.kinds
