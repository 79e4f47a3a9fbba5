"""torchvision's classifiers, segmentation networks (dicts) and detection backbones."""

from __future__ import annotations

import copy

import oracle
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torchvision.models import segmentation
from torchvision.models.feature_extraction import create_feature_extractor

import attribkit as ak

pytestmark = pytest.mark.usefixtures("one_thread")
X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def same(found, reference, tolerance=1e-9):
    scale = reference.abs().max()
    assert scale > 0
    assert (found - reference).abs().max() <= tolerance * scale


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "shufflenet_v2_x0_5", "regnet_y_400mf", "swin_t"])
def test_torchvisions_classifiers(name):
    torch.manual_seed(0)
    net = torchvision.models.get_model(name, num_classes=5).double().eval()
    x = F.interpolate(X[:1], 64)
    for method in oracle.METHODS:
        reference = oracle.explain(net, x, method, 1)
        found = ak.attribute(net, x, method=method, target=1)
        same(found.values, reference.values)
        assert method == "gradient" or found.coverage.kinds["rectifier"][0] == reference.rectifiers


@pytest.mark.parametrize("name", ["fcn_resnet50", "lraspp_mobilenet_v3_large"])
def test_segmentation_takes_a_callable(name):
    torch.manual_seed(0)
    net = getattr(segmentation, name)(weights=None, weights_backbone=None, num_classes=4).double().eval()
    x = F.interpolate(X[:1], 48)

    def score(outputs):
        return outputs["out"][:, 1, 20:30, 20:30].mean((1, 2))

    for method in oracle.METHODS:
        found = ak.attribute(net, x, method=method, target=score)
        same(found.values, oracle.explain(net, x, method, score).values)
        assert "score" in str(found.target)
    with pytest.raises(ak.AttribkitError, match="callable target") as caught:
        ak.attribute(net, x, target=1)
    assert "'out'" in str(caught.value)
    found = ak.attribute(net, x, method="occlusion", target=score, window=24, stride=24)
    assert found.values.any()
    assert "label_map" not in found.extras


def test_detection_backbones_feature_extractors():
    torch.manual_seed(0)
    net = torchvision.models.resnet18(num_classes=3)
    extractor = create_feature_extractor(net, {"layer2": "mid", "layer4": "top"}).double().eval()
    pyramid = torchvision.models.detection.backbone_utils.resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, trainable_layers=5
    )
    x = F.interpolate(X[:2], 64)
    for model, key in ((extractor, "mid"), (pyramid.double().eval(), "1")):
        score = lambda outputs, key=key: outputs[key][:, 3].amax((1, 2))  # noqa: E731
        for method in oracle.METHODS:
            found = ak.attribute(model, x, method=method, target=score)
            same(found.values, oracle.explain(model, x, method, score).values)
    names = [site.name for site in ak.inspect(extractor, x).sites if site.kind == "rectifier"]
    assert "layer1.0.relu" in names
    assert "layer1.0.relu_1" in names
    unit = ak.attribute(extractor, x, target=ak.Unit("layer2.0.relu_1", 5))
    plain = ak.attribute(copy.deepcopy(net).double().eval(), x, target=ak.Unit("layer2.0.relu_1", 5))
    same(unit.values, plain.values, 1e-12)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "shufflenet_v2_x0_5"])
def test_float_models_made_to_be_quantised_later_are_explained(name):
    torch.manual_seed(0)
    theirs = getattr(torchvision.models.quantization, name)(weights=None, quantize=False).eval()
    plain = getattr(torchvision.models, name)(weights=None).eval()
    plain.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 64, 64)
    for method in ("gradient", "guided_backprop", "deconvnet"):
        found = ak.attribute(theirs, x, method, 3)
        expected = ak.attribute(plain, x, method, 3)
        torch.testing.assert_close(
            found.values, expected.values, rtol=1e-4, atol=1e-4 * float(expected.values.abs().max())
        )
        assert found.coverage.rewritten == expected.coverage.rewritten
