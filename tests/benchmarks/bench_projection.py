"""Many units of one layer projected to pixel space: `attribkit.project` against Captum, one call a unit.

Interleaved in one process; printed and written to out/bench/projection.json: the median of the ratios of times with
the smallest and the largest, by the clock and by CPU time. Weights are random; the work is the same for all of them.
"""

from __future__ import annotations

import statistics

import pytest
import torch
import torchvision
from bench_tools import Stopwatch, record
from captum.attr import NeuronDeconvolution
from torch import nn

import attribkit as ak

UNITS = 64
CALLS = 8  # of Captum's a round; its time is taken UNITS / CALLS times, for every call does the same
ROUNDS = 3
CASES = {
    ("vgg16", "features.14"): 15,
    ("vgg16", "features.28"): 3,
    ("resnet18", "layer2.1.conv2"): 8,
    ("resnet18", "layer3.1.conv2"): 3,
}


def network(name):
    torch.manual_seed(0)
    model = getattr(torchvision.models, name)(weights=None).eval()
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False  # as Captum needs it
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize(("name", "layer"), CASES)
@pytest.mark.filterwarnings("ignore::UserWarning")  # Captum's, on its hooks
def test_project(name, layer, threads):
    model, x = network(name), torch.randn(1, 3, 224, 224)
    caught = {}
    with model.get_submodule(layer).register_forward_hook(lambda m, a, out: caught.update(value=out.detach())):
        model(x)
    flat = caught["value"][0].flatten(1).argmax(1)
    width = caught["value"].shape[-1]
    explainer = NeuronDeconvolution(model, model.get_submodule(layer))

    def captum(channel):
        return explainer.attribute(x, (channel, *divmod(int(flat[channel]), width)))

    ours = ak.project(model, x, layer, range(UNITS), method="deconvnet")
    for channel in (0, UNITS - 1):  # the same maps, but that our signal starts as the activation
        expected = captum(channel) * ours.scores[0, channel]
        torch.testing.assert_close(ours.values[:, channel], expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    rounds = []
    for _ in range(ROUNDS):
        with Stopwatch() as mine:
            ak.project(model, x, layer, range(UNITS), method="deconvnet")
        with Stopwatch() as theirs:
            for channel in range(CALLS):
                captum(channel * UNITS // CALLS)
        rounds.append((theirs.wall / mine.wall * UNITS / CALLS, theirs.cpu / mine.cpu * UNITS / CALLS, mine.wall))
    wall, cpu, seconds = (list(column) for column in zip(*rounds, strict=True))
    record("projection", f"{name} {layer}, {threads} threads", faster_wall=wall, faster_cpu=cpu, seconds=seconds)
    assert statistics.median(cpu) >= CASES[name, layer]
