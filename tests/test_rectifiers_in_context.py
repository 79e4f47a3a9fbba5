"""Rectifiers inside activation checkpoints, under autocast and in low precision, called many times."""

from __future__ import annotations

import copy
import warnings
from contextlib import nullcontext

import oracle
import pytest
import torch
import torch.nn.functional as F
from timm.layers import activations_me
from timm.models import resnet, vision_transformer
from torch import nn
from torch.utils import checkpoint

import attribkit as ak

pytestmark = pytest.mark.usefixtures("one_thread")
X = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Block(nn.Module):
    """What is checkpointed: modules, functions, in place, a class seen as a whole and a max pool."""

    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.act = nn.ReLU(inplace=True)
        self.whole = activations_me.HardMishMe()

    def forward(self, x):
        x = self.act(self.norm(self.conv(x))) + x
        x = F.max_pool2d(self.whole(x), 3, 1, 1)
        return F.silu(x - 0.2)


class Checkpointed(nn.Module):
    """Two blocks, checkpointed in one way or not at all."""

    def __init__(self, reentrant):
        super().__init__()
        torch.manual_seed(1)
        self.stem = nn.Conv2d(3, 6, 3)
        self.blocks = nn.ModuleList([Block(6), Block(6)])
        self.head = nn.Linear(6, 4)
        self.reentrant = reentrant

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            if self.reentrant is None:
                x = block(x)
            else:
                x = checkpoint.checkpoint(block, x, use_reentrant=self.reentrant)
        return self.head(x.mean((2, 3)))


def both(reentrant):
    return Checkpointed(reentrant).double().eval(), Checkpointed(None).double().eval()


@pytest.mark.parametrize("method", oracle.METHODS)
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_blocks_give_the_same_map(reentrant, method):
    net, plain = both(reentrant)
    found = ak.attribute(net, X, method=method, target=2)
    expected = ak.attribute(plain, X, method=method, target=2)
    assert torch.equal(found.values, expected.values)
    reference = oracle.explain(plain, X, method, 2)
    assert reference.rectifiers == 6
    torch.testing.assert_close(found.values, reference.values, rtol=1e-10, atol=1e-13)
    # what is run a second time on the way back is not counted a second time
    assert found.coverage == expected.coverage
    assert [p.grad for p in net.parameters()] == [None] * len(list(net.parameters()))


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("layer", ["blocks.0.act", "blocks.1", "blocks.1.max_pool2d"])
def test_units_inside_and_behind_checkpoints(reentrant, layer):
    net, plain = both(reentrant)
    for method in ("guided_backprop", "deconvnet"):
        target = ak.Unit(layer, 3)
        found, expected = (ak.attribute(each, X, method=method, target=target) for each in (net, plain))
        assert expected.values.any()
        assert torch.equal(found.values, expected.values)
        assert torch.equal(found.scores, expected.scores)


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_plain_backward_after_ours_still_checkpoints(reentrant):
    """Nothing of the call stays behind: the model's own training step recomputes its blocks as before."""
    net, plain = both(reentrant)
    ak.attribute(net, X, method="guided_backprop", target=2)
    calls = []
    net.blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    for each in (net, plain):
        each(X.clone().requires_grad_()).sum().backward()
    assert len(calls) == 2
    for one, other in zip(net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_timms_gradient_checkpointing(kind):
    torch.manual_seed(2)
    if kind == "resnet":
        net = resnet.ResNet(resnet.BasicBlock, (1, 1, 1, 1), num_classes=5, channels=(8, 8, 16, 16), stem_width=8)
    else:
        net = vision_transformer.VisionTransformer(
            img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=5
        )
    net, x = net.eval(), torch.randn(2, 3, 32, 32)
    plain = copy.deepcopy(net)
    net.set_grad_checkpointing(True)
    for method in oracle.METHODS:
        found, expected = (ak.attribute(each, x, method=method, target=1) for each in (net, plain))
        assert expected.values.any()
        assert torch.equal(found.values, expected.values)
        assert found.coverage == expected.coverage


class Mixed(nn.Module):
    """Rectifiers in the lower precision (behind convolutions) and in the higher (behind norms)."""

    def __init__(self, inside=False):
        super().__init__()
        torch.manual_seed(3)
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, stride=2)
        self.norm = nn.GroupNorm(2, 8)
        self.act, self.gelu = nn.ReLU(inplace=True), nn.GELU()
        self.head = nn.Linear(8, 4)
        self.inside = inside

    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16) if self.inside else nullcontext():
            x = self.act(self.conv1(x))
            x = F.max_pool2d(x, 2)
            x = self.act(self.gelu(self.norm(self.conv2(x))) - 0.1)
            return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("method", oracle.METHODS)
@pytest.mark.parametrize("inside", [True, False])
def test_under_autocast(inside, method):
    net, x = Mixed(inside).eval(), X.float()
    with nullcontext() if inside else torch.autocast("cpu", dtype=torch.bfloat16):
        found = ak.attribute(net, x, method=method, target=1)
        reference = oracle.explain(net, x, method, 1)
    assert found.values.dtype == torch.float32
    assert found.coverage.kinds["rectifier"] == ((3, 3) if method != "gradient" else (0, 3))
    assert reference.values.abs().max() > 0
    assert (found.values - reference.values).abs().max() <= 1e-6 * reference.values.abs().max()
    exact = oracle.explain(Mixed().eval(), x, method, 1).values
    error = (found.values - exact).abs().max() / exact.abs().max()
    assert 1e-5 < error < 0.1  # bfloat16 was at work, and the map is that of the network


@pytest.mark.parametrize("method", oracle.METHODS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision(dtype, method):
    net = Mixed().eval()
    exact = ak.attribute(net, X.float(), method=method, target=1).values
    low, x = copy.deepcopy(net).to(dtype), X.to(dtype)
    found = ak.attribute(low, x, method=method, target=1)
    assert found.values.dtype == dtype
    reference = oracle.explain(low, x, method, 1).values
    assert reference.any()
    torch.testing.assert_close(found.values, reference, rtol=1e-2, atol=1e-3 * float(reference.abs().max()))
    assert (found.values.float() - exact).abs().max() < 0.1 * exact.abs().max()


def test_one_module_called_many_times_in_a_loop():
    class Recurrent(nn.Module):
        def __init__(self, acts):
            super().__init__()
            torch.manual_seed(4)
            self.conv, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 2)
            self.acts = nn.ModuleList(acts)

        def forward(self, x):
            for step in range(5):
                x = self.acts[step % len(self.acts)](self.conv(x)) + x
            return self.head(x.mean((2, 3)))

    one, five = Recurrent([nn.ReLU()]).double().eval(), Recurrent([nn.ReLU() for _ in range(5)]).double().eval()
    names = [site.name for site in ak.inspect(one, X).sites if site.kind == "rectifier"]
    assert names == ["acts.0", "acts.0_1", "acts.0_2", "acts.0_3", "acts.0_4"]
    for method in oracle.METHODS:
        found, expected = (ak.attribute(net, X, method=method, target=0) for net in (one, five))
        assert torch.equal(found.values, expected.values)
        third = ak.attribute(one, X, method=method, target=ak.Unit("acts.0_2", 1)).values
        assert torch.equal(third, ak.attribute(five, X, method=method, target=ak.Unit("acts.2", 1)).values)
        assert third.any()


def test_a_subclass_without_a_rectifier_call_is_run_no_more_often_than_needed():
    """A subclass's forward is looked at once for each module, without leaving a trace, and then trusted."""

    class Counting(nn.ReLU):
        runs = 0

        def forward(self, input):
            type(self).runs += 1
            return input.clamp(min=0)

    net = nn.Sequential(nn.Conv2d(3, 4, 3), Counting(), nn.Conv2d(4, 4, 3), Counting(), nn.Flatten(), nn.Linear(256, 2))
    net = net.double().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = ak.attribute(net, X, method="guided_backprop", target=0)
    assert found.coverage.kinds["rectifier"] == (2, 2)
    assert Counting.runs <= 4
