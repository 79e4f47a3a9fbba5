"""The maps are Zennit's."""

import pytest
import torch
import torchvision
from zennit_maps import NAMES, with_statistics, zennit_map

import attribkit as ak

CLASSES = torch.tensor([3, 7])


def small(name):
    torch.manual_seed(0)
    return (
        with_statistics(getattr(torchvision.models, name)(weights=None, num_classes=10)).double().requires_grad_(False)
    )


def images(size=64):
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("model_name", ["vgg11_bn", "resnet18", "resnet50", "densenet121"])
def test_every_composite_equals_zennits(model_name):
    model, x, classes = small(model_name), images()[:1], CLASSES[:1]
    for name in NAMES:
        found = ak.attribute(model, x, name, classes).values
        expected = zennit_map(model, x, classes, name)
        assert (found - expected).abs().max() < 1e-8 * expected.abs().max(), name


def test_what_zennit_leaves_of_a_merged_batch_norm_is_the_only_difference():
    model, x = small("resnet18"), images(32)
    found = ak.attribute(model, x, "lrp_epsilon_plus_flat", CLASSES).values
    raw = zennit_map(model, x, CLASSES, "lrp_epsilon_plus_flat", exact=False)
    difference = (found - raw).abs().max() / raw.abs().max()
    assert 1e-6 < difference < 1e-3


def test_given_bounds_are_used_and_reported():
    model, x = small("resnet18"), images(32)
    default = ak.attribute(model, x, "lrp_epsilon_gamma_box", CLASSES)
    assert torch.equal(default.extras["low"], x.amin().expand(2, 3))
    assert torch.equal(default.extras["high"], x.amax().expand(2, 3))
    same = ak.attribute(model, x, "lrp_epsilon_gamma_box", CLASSES, low=float(x.min()), high=float(x.max()))
    assert torch.equal(same.values, default.values)
    low = torch.tensor([-5.0, -6.0, -7.0]).view(3, 1, 1)
    wide = ak.attribute(model, x, "lrp_epsilon_gamma_box", CLASSES, low=low, high=8.0)
    assert torch.equal(wide.extras["low"], low.view(1, 3).double().expand(2, 3))
    assert (wide.values - default.values).abs().max() > 1e-3 * default.values.abs().max()
    alone = ak.attribute(model, x[:1], "lrp_epsilon_gamma_box", CLASSES[:1], low=low, high=8.0)
    assert torch.allclose(alone.values, wide.values[:1], rtol=1e-9, atol=1e-12)
    with pytest.raises(ak.AttribkitError, match=r"low has shape \(4,\)"):
        ak.attribute(model, x, "lrp_epsilon_gamma_box", CLASSES, low=torch.zeros(4))
