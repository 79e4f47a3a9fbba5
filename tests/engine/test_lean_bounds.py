"""Lean steps of functions with ends that the inputs' numbers cannot hold."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import attribkit as ak

pytestmark = pytest.mark.usefixtures("one_thread", "lean_everywhere")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("ends", [(-0.3, 0.8), (-0.7, 0.3), (0.0, 6.0)])
def test_inputs_at_the_ends(dtype, ends):
    x = torch.tensor([*ends, 0.1, 9.0, -9.0]).to(dtype)
    x = torch.cat([x, torch.nextafter(x, x + 1), torch.nextafter(x, x - 1)]).view(1, 3, 1, 5).repeat(1, 1, 8, 1)
    model = nn.Sequential(nn.Identity(), nn.Hardtanh(*ends), nn.Flatten())

    def total(outputs):
        return outputs.sum(1)

    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(total(model(leaf)).sum(), leaf)
    assert torch.equal(ak.attribute(model, x, "gradient", total).values, expected)
