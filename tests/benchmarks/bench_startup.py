"""How long the import and the torch-free commands take, in CPU seconds of a process of their own."""

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
