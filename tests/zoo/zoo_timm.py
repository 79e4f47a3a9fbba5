"""One model of each of timm's families, random weights: the walk gets through, is exact and leaves nothing behind.

Run by ``make zoo``; ``make zoo ZOO="resnet18 convnext_atto"`` takes the named models instead.
"""

from __future__ import annotations

import os

import pytest
import timm
import torch

import attribkit as ak

LARGEST = 100e6  # parameters; a family whose smallest model has more is skipped: each takes 4 bytes, and its gradient 4
SMALL = ["test_", "atto", "femto", "pico", "nano", "xxtiny", "xxs", "_xs", "micro", "tiny", "mini", "small", "_s", "18"]


def smallness(name: str) -> tuple[int, int, str]:
    first = next((place for place, hint in enumerate(SMALL) if hint in name), len(SMALL))
    return first, len(name), name


def families() -> list[str]:
    listed = (timm.list_models(module=module) for module in timm.list_modules())
    return [min(names, key=smallness) for names in listed if names]


@pytest.mark.parametrize("name", os.environ.get("ZOO", "").split() or families())
def test_model(name):
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in timm.create_model(name).parameters())
    if size > LARGEST:
        pytest.skip(f"{size / 1e6:.0f} million parameters")
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    x = torch.randn(1, *timm.data.resolve_model_data_config(model)["input_size"])

    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(model(leaf)[:, 3].sum(), leaf)
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    found = ak.attribute(model, x, method="gradient", target=3)
    torch.testing.assert_close(found.values, expected, rtol=1e-4, atol=1e-6 * float(expected.abs().max()))

    rewritten = ak.attribute(model, x, method="guided_backprop", target=3)
    assert rewritten.values.shape == x.shape
    assert rewritten.coverage.rewritten > 0
    assert ak.inspect(model, x).sites
    assert hooks == [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    assert all(parameter.grad is None for parameter in model.parameters())
