"""Incremental occlusion of real architectures in float32: scores at every position equal the whole model's."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

import attribkit as ak
from attribkit.models import zfnet

pytestmark = pytest.mark.usefixtures("one_thread")

MODELS = {
    "zfnet": lambda: zfnet(num_classes=10, in_chans=3, img_size=112, width=0.125),
    "resnet10t": lambda: timm.create_model("resnet10t"),
    "mobilenetv2_035": lambda: timm.create_model("mobilenetv2_035"),
    "tf_efficientnet_lite0": lambda: timm.create_model("tf_efficientnet_lite0"),  # SAME padding
    "mobilenetv3_small_050": lambda: timm.create_model("mobilenetv3_small_050"),  # squeeze-and-excite
    "convnext_atto": lambda: timm.create_model("convnext_atto"),
}


@pytest.mark.parametrize("name", MODELS)
def test_scores_at_every_position(name):
    torch.manual_seed(3)
    model = MODELS[name]().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    x = torch.randn(1, 3, 112, 112)
    with torch.no_grad():
        largest = model(x).abs().max()
    options = {"target": 2, "window": 16, "stride": 24, "fill": 0.5}
    ours = ak.attribute(model, x, "occlusion", engine="incremental", **options)
    full = ak.attribute(model, x, "occlusion", engine="full", **options)
    assert ours.extras["incremental"].all()
    assert full.extras["score_map"].std() > 0
    assert (ours.extras["score_map"] - full.extras["score_map"]).abs().max() <= 1e-5 * largest
