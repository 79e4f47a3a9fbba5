"""The maps are pytorch-grad-cam's, at 64×64 and with random weights."""

import pytest
import timm
import torch
import torchvision

import attribkit as ak

gradcam_maps = pytest.importorskip("gradcam_maps", reason="needs grad-cam", exc_type=ImportError)

NAMES = ("grad_cam", "grad_cam_plus_plus", "layer_cam")
#: Such that no map is empty.
CLASSES = torch.tensor([2, 4])


def model_of(name):
    torch.manual_seed(0)
    if name in ("resnet18", "resnet50", "vgg16", "densenet121"):
        return getattr(torchvision.models, name)(weights=None, num_classes=5).eval().requires_grad_(False)
    size = {"img_size": 64} if name.startswith(("vit", "swin")) else {}
    return timm.create_model(name, num_classes=5, **size).eval().requires_grad_(False)


def images():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def assert_close(found, expected, what):
    assert expected.abs().max() > 0, f"{what}: the map to compare with is empty"
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max(), what


CASES = [
    ("resnet18", "layer4", None),
    ("resnet50", "layer4", None),
    ("vgg16", "features", None),
    ("densenet121", "features.denseblock4", None),
    ("convnext_tiny", "stages.3", None),
    ("swin_tiny_patch4_window7_224", "layers.2", "channels_first"),
    ("vit_tiny_patch16_224", "blocks.11.norm1", "tokens"),
]


@pytest.mark.parametrize(("name", "layer", "reshape"), CASES, ids=[case[0] for case in CASES])
def test_every_method_equals_pytorch_grad_cams(name, layer, reshape):
    model, x = model_of(name), images()
    helper = {
        None: None,
        "tokens": gradcam_maps.tokens_to_maps(1),
        "channels_first": gradcam_maps.channels_first,
    }[reshape]
    for method in NAMES:
        found = ak.attribute(model, x, method, CLASSES, layer=layer)
        assert_close(found.heatmap(), gradcam_maps.gradcam_map(method, model, layer, x, CLASSES, helper), method)


@pytest.mark.parametrize(("name", "layer"), [("resnet18", "relu"), ("vit_tiny_patch16_224", "blocks.2.norm1")])
def test_score_cam_equals_pytorch_grad_cams(name, layer):
    model, x = model_of(name), images()[:1]
    helper = gradcam_maps.tokens_to_maps(1) if name.startswith("vit") else None
    found = ak.attribute(model, x, "score_cam", CLASSES[:1], layer=layer)
    assert_close(found.heatmap(), gradcam_maps.gradcam_map("score_cam", model, layer, x, CLASSES[:1], helper), name)
