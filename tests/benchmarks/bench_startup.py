"""How long the import, the torch-free commands and the first call take, in CPU seconds of a process of their own."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys

import pytest
from bench_tools import record

RUNS = 5
COMMANDS = {
    "python": ["-c", "pass"],
    "import attribkit": ["-c", "import attribkit"],
    "plugins.manager()": ["-c", "from attribkit.plugins import manager; manager()"],
    "attribkit --help": ["-c", "from attribkit.cli import main; main(['--help'])"],
    "attribkit methods": ["-c", "from attribkit.cli import main; main(['methods'])"],
    "attribkit plugins": ["-c", "from attribkit.cli import main; main(['plugins'])"],
}
NET = """
import torch
from torch import nn
net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).eval()
x = torch.randn(1, 3, 8, 8)
"""
FIRST = {
    "import torch": "import torch",
    "a gradient by torch alone": NET + "x.requires_grad_()\ntorch.autograd.grad(net(x)[:, 1].sum(), x)",
    **{
        f"ak.attribute, {method}": NET + f"import attribkit as ak\nak.attribute(net, x, '{method}', 1)"
        for method in ("gradient", "guided_backprop", "deconvnet", "occlusion")
    },
}


def cpu_seconds(arguments: list[str]) -> float:
    before = os.times()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


@pytest.mark.parametrize("name", COMMANDS)
def test_start(name):
    cpu_seconds(COMMANDS[name])  # compiles what is not compiled yet
    seconds = [cpu_seconds(COMMANDS[name]) for _ in range(RUNS)]
    record("startup", name, cpu_seconds=seconds)
    assert statistics.median(seconds) < 0.5


def test_the_first_call_costs_less_than_the_import_of_torch():
    seconds = {}
    for name, code in FIRST.items():
        cpu_seconds(["-c", code])
        seconds[name] = [cpu_seconds(["-c", code]) for _ in range(RUNS)]
        record("startup", name, cpu_seconds=seconds[name])
    median = {name: statistics.median(found) for name, found in seconds.items()}
    for name in FIRST:
        assert median[name] <= 2 * median["import torch"], name
