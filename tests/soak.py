"""Run many small attributions by mixed methods in one process, and say what they leave behind.

Usage: ``OMP_NUM_THREADS=1 python tests/soak.py [--count 20000] [--warm-up 1000] [--limit MB]``.

Every built-in method is used, occlusion with both engines, single units and classes, `ak.project`, `ak.inspect`, saving
and loading; every seventh job fails on purpose: a forward pass that raises, an option that is none, a layer that is
none. After the warm-up resident memory may grow by less than ``--limit`` megabytes, and no hook, open file, thread,
torch mode or gradient may be left; else the exit code is 1.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import attribkit as ak
from attribkit.models import zfnet

MEGABYTE = 2**20
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class Refused(RuntimeError):
    """What the net below raises when it is told to."""


class Small(nn.Module):
    """A skip connection, in-place and functional rectifiers; it fails half way up when ``fails`` is set."""

    fails = False

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu(self.norm(self.conv1(x))))
        if self.fails:
            raise Refused("told to")
        return self.head(F.gelu(x + self.conv2(F.relu(x))).mean((2, 3)))


class Jobs:
    """What is done, one after the other; every round of them has other inputs."""

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(0)
        self.small = Small().eval()
        self.zfnet = zfnet(num_classes=5, img_size=64, width=0.03).eval()
        self.file = folder / "kept.safetensors"
        self.draw = torch.Generator().manual_seed(1)
        unit = ak.Unit("conv2", 2)
        self.all: list[Callable[[Tensor], Any]] = [
            *(self._explained(method) for method in ("gradient", "guided_backprop", "deconvnet")),
            *(self._explained(method, target=unit) for method in ("gradient", "guided_backprop", "deconvnet")),
            self._explained("occlusion", window=4, stride=4, engine="full"),
            self._explained("occlusion", window=4, stride=4, engine="incremental"),
            self._explained("occlusion", window=6, stride=6, target=unit),
            lambda x: ak.project(self.small, x, "conv2", [0, 3]),
            lambda x: ak.project(self.small, x, "pool", [1], method="gradient", position=(1, 2)),
            lambda x: str(ak.inspect(self.small, x, method="deconvnet")),
            self._kept,
            self._zfnet,
        ]
        self.failing: list[tuple[type[Exception], Callable[[Tensor], Any]]] = [
            *((Refused, self._refused(method)) for method in ("gradient", "deconvnet", "occlusion")),
            (ak.errors.UnknownOptionError, self._explained("gradient", windw=3)),
            (ak.errors.UnknownNameError, self._explained("deconvnet", target=ak.Unit("conv9", 0))),
            (ak.errors.InputError, self._explained("guided_backprop", target=99)),
            (Refused, lambda x: self._failing(lambda: ak.project(self.small, x, "conv2", [0]))),
            (Refused, lambda x: self._failing(lambda: ak.inspect(self.small, x))),
        ]

    def run(self, number: int) -> None:
        """Do one job; one that is to fail must."""
        x = torch.randn(1 + number % 2, 3, 12, 12, generator=self.draw)
        if number % 7:
            self.all[number % len(self.all)](x)
            return
        error, job = self.failing[number // 7 % len(self.failing)]
        try:
            job(x)
        except error:
            return
        raise AssertionError(f"job {number} was to raise {error.__name__}")

    def _explained(self, method: str, **options: Any) -> Callable[[Tensor], Any]:
        return lambda x: ak.attribute(self.small, x, method=method, **options)

    def _failing(self, job: Callable[[], Any]) -> Any:
        self.small.fails = True
        try:
            return job()
        finally:
            self.small.fails = False

    def _refused(self, method: str) -> Callable[[Tensor], Any]:
        return lambda x: self._failing(lambda: ak.attribute(self.small, x, method=method))

    def _kept(self, x: Tensor) -> None:
        ak.attribute(self.small, x, method="occlusion", window=6).save(self.file)
        ak.Attribution.load(self.file)

    def _zfnet(self, x: Tensor) -> None:
        x = F.interpolate(x, 64)
        ak.attribute(self.zfnet, x, method="deconvnet", target=ak.Unit("conv3", 1))


def left(*models: nn.Module) -> dict[str, int]:
    """Return what must be the same before and after, each as a number."""
    shared = vars(nn.modules.module)
    return {
        "hooks": sum(len(getattr(m, name)) for model in models for m in model.modules() for name in HOOKS),
        "global hooks": sum(len(v) for k, v in shared.items() if k.startswith("_global_") and isinstance(v, dict)),
        "torch modes": torch._C._len_torch_function_stack() + torch._C._len_torch_dispatch_stack(),
        "gradients": sum(p.grad is not None for model in models for p in model.parameters()),
        "modules in training": sum(m.training for model in models for m in model.modules()),
        "open files": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
        "Python threads": threading.active_count(),
    }


def resident() -> float:
    """Return the process's resident memory in megabytes, without what only waits for the collector."""
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MEGABYTE


def soak(count: int, warm_up: int, folder: Path, steps: int = 10, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Run ``count`` attributions after ``warm_up`` ones; return the growth in megabytes and what is left."""
    jobs = Jobs(folder)
    for number in range(warm_up):
        jobs.run(number)
    before, began, start = left(jobs.small, jobs.zfnet), resident(), time.monotonic()
    most = began
    for number in range(count):
        jobs.run(number)
        if (number + 1) % max(1, count // steps) == 0:
            now = resident()
            most = max(most, now)
            say(f"{number + 1:>7,} done, {time.monotonic() - start:6.0f} s, resident {now:7.1f} MB")
    after = left(jobs.small, jobs.zfnet)
    changed = {name: (before[name], after[name]) for name in before if before[name] != after[name]}
    return {"growth": resident() - began, "most": most - began, "changed": changed, "after": after}


def main(arguments: list[str] | None = None) -> int:
    """Soak as the command line says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=20_000, metavar="N")
    parser.add_argument("--warm-up", type=int, default=1_000, metavar="N")
    parser.add_argument("--limit", type=float, default=20.0, metavar="MB")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore", ak.CoverageWarning)  # inspecting and explaining units below a rectifier
    with tempfile.TemporaryDirectory() as folder:
        found = soak(options.count, options.warm_up, Path(folder))
    print(f"memory grew by {found['growth']:.1f} MB after the warm-up, by {found['most']:.1f} MB at most on the way")
    print(", ".join(f"{name} {number}" for name, number in found["after"].items()))
    for name, (before, after) in found["changed"].items():
        print(f"left behind: {name}: {before} before, {after} after")
    return int(found["most"] >= options.limit or bool(found["changed"]))


if __name__ == "__main__":
    sys.exit(main())
