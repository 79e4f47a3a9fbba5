"""Four threads attribute by mixed methods on one model while a fifth runs plain gradients on it."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from timm.layers import activations_me
from torch import nn
from torch.utils import checkpoint

import attribkit as ak

pytestmark = pytest.mark.usefixtures("one_thread")
EACH = 50
TOLERANCE = 1e-6


class Net(nn.Module):
    """A bit of everything that the threads could confuse: in place, reused, functional, whole, checkpointed."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.bn, self.relu, self.mish = nn.BatchNorm2d(8), nn.ReLU(inplace=True), activations_me.MishMe()
        self.lrn, self.pool = nn.LocalResponseNorm(3), nn.MaxPool2d(3, 2)
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(8, 5)
        self.eval()

    def block(self, x):
        return self.mish(self.relu(self.conv2(x)) + x)

    def forward(self, x):
        x = self.pool(self.lrn(self.relu(self.bn(self.conv1(x)))))
        x = checkpoint.checkpoint(self.block, x, use_reentrant=True)
        x = checkpoint.checkpoint(self.block, x, use_reentrant=False)
        return self.head(self.drop(F.gelu(x).mean((2, 3))))


class InputXGradient(ak.Method):
    name = "input_x_gradient"
    summary = "Input times gradient"

    def attribute(self, model, inputs, target):
        x = inputs.detach().requires_grad_()
        return inputs * torch.autograd.grad(target.scores(model, x).sum(), x)[0]


def image(seed):
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def jobs(net):
    """Return calls, each with its method, target and inputs."""
    unit, many = ak.Unit("relu_1", 3), [0, 2, 5]
    return [
        lambda: ak.attribute(net, image(0), method="gradient", target=1).values,
        lambda: ak.attribute(net, image(1), method="guided_backprop", target=torch.tensor([2, 0])).values,
        lambda: ak.attribute(net, image(2), method="deconvnet", batch_size=1).values,
        lambda: ak.attribute(net, image(3), method="deconvnet", target=unit).values,
        lambda: ak.attribute(net, image(4), method="guided_backprop", target=ak.Unit("pool", 2, (1, 3))).values,
        lambda: ak.attribute(net, image(5), method="occlusion", target=3, window=8, stride=8).values,
        lambda: ak.attribute(net, image(6), method=InputXGradient, target=4).values,
        lambda: ak.attribute(net, image(7), method="gradient", target=lambda scores: scores.square().sum(1)).values,
        lambda: ak.project(net, image(8), "conv2_1", many, method="deconvnet").values,
        lambda: ak.project(net, image(9), "mish", many, method="guided_backprop").values,
    ]


def plain(net):
    x = image(10).requires_grad_()
    return torch.autograd.grad(net(x)[:, 2].sum(), x)[0]


class Unchecked(Net):
    """Without the re-entrant checkpoint, which no plain ``autograd.grad`` can go through."""

    def forward(self, x):
        x = self.pool(self.lrn(self.relu(self.bn(self.conv1(x)))))
        x = checkpoint.checkpoint(self.block, self.block(x), use_reentrant=False)
        return self.head(self.drop(F.gelu(x).mean((2, 3))))


@pytest.mark.parametrize("network", [Unchecked, Net])
def test_mixed_methods_in_four_threads_beside_plain_gradients(network):
    net = network()
    work = jobs(net)
    alone = [job() for job in work]
    # the model with a re-entrant checkpoint gets plain forward passes beside it instead
    beside = (lambda: plain(net)) if network is Unchecked else (lambda: net(image(10)).detach())
    undisturbed = beside()
    for one, other in zip(alone, [job() for job in work], strict=True):
        assert torch.equal(one, other)
        assert one.any()
    start, done, runs = threading.Barrier(5), threading.Event(), []

    def attribute(first):
        start.wait(20)
        worst = 0.0
        for step in range(EACH):
            index = (first + step) % len(work)
            found = work[index]()
            worst = max(worst, float((found - alone[index]).abs().max() / alone[index].abs().max()))
        return worst

    def watch():
        start.wait(20)
        worst = 0.0
        while not done.is_set():
            worst = max(worst, float((beside() - undisturbed).abs().max() / undisturbed.abs().max()))
            runs.append(worst)
        return worst

    with ThreadPoolExecutor(5) as pool:
        watcher = pool.submit(watch)
        workers = [pool.submit(attribute, first) for first in (0, 3, 5, 8)]
        try:
            errors = [worker.result(120) for worker in workers]
        finally:
            done.set()
        assert watcher.result(20) <= TOLERANCE
    assert max(errors) <= TOLERANCE
    assert len(runs) > EACH
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert not any(module.training for module in net.modules())
