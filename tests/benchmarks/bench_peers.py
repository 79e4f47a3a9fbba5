"""The gradient methods side by side: attribkit, Captum, Zennit and bare torch, in turns in one process.

That the maps are the same is checked first; then five rounds, each in another order. The medians of the ratios to
attribkit's time go into out/bench/peers.json, with the smallest and the largest. Weights are random.
"""

from __future__ import annotations

import time

import captum.attr
import pytest
import torch
import torchvision
import zennit.attribution
import zennit.composites
from bench_tools import record
from torch import nn

import attribkit as ak

ROUNDS, BATCH = 5, 4


def network(name):
    torch.manual_seed(0)
    model = getattr(torchvision.models, name)(weights=None).eval()
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False  # as Captum and Zennit need it
    return model


def torchs(model, x):
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(model(leaf)[:, 3].sum(), leaf)[0]


def captums(algorithm, **options):
    return lambda model, x: algorithm(model).attribute(x.clone().requires_grad_(), target=3, **options).detach()


def zennits(composite):
    def run(model, x):
        with zennit.attribution.Gradient(model, composite) as attributor:
            return attributor(x, lambda output: torch.eye(output.shape[1])[[3]].expand_as(output))[1]

    return run


PEERS = {
    "gradient": {"torch": torchs, "captum": captums(captum.attr.Saliency, abs=False), "zennit": zennits(None)},
    "guided_backprop": {
        "captum": captums(captum.attr.GuidedBackprop),
        "zennit": zennits(zennit.composites.GuidedBackprop()),
    },
    "deconvnet": {
        "captum": captums(captum.attr.Deconvolution),
        "zennit": zennits(zennit.composites.DeconvNet()),
    },
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # Captum's, on its hooks
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("method", PEERS)
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "vgg16"])
def test_peers(name, method, threads):
    model, x = network(name), torch.randn(BATCH, 3, 224, 224)
    runs = {"attribkit": lambda model, x: ak.attribute(model, x, method, 3).values, **PEERS[method]}
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    seconds = {who: [] for who in runs}
    try:
        maps = {who: run(model, x) for who, run in runs.items()}
        for number in range(ROUNDS):
            for who in sorted(runs, reverse=bool(number % 2)):
                start = time.perf_counter()
                runs[who](model, x)
                seconds[who].append(time.perf_counter() - start)
        for who, found in maps.items():
            torch.testing.assert_close(
                found, maps["attribkit"], rtol=0, atol=1e-4 * float(maps["attribkit"].abs().max()), msg=who
            )
        ratios = {
            who: [theirs / ours for theirs, ours in zip(times, seconds["attribkit"], strict=True)]
            for who, times in seconds.items()
            if who != "attribkit"
        }
        record("peers", f"{name}, {method}, {threads} threads", seconds=seconds["attribkit"], **ratios)
    finally:
        torch.set_num_threads(before)
