"""How cost grows: with pixels, windows, units and the batch; seconds and exponents in out/bench/growth.json.

An exponent is the slope of log seconds against log size by least squares: 1 is linear, below 1 something is shared.
"""

from __future__ import annotations

import statistics
import time

import numpy as np
import pytest
import torch
import torchvision
from bench_tools import keep

import attribkit as ak

ROUNDS = 3
SIDES = (224, 320, 448, 640, 896)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return torchvision.models.resnet18(weights=None).eval()


def pixels(method, **options):
    return {side * side: lambda m, s=side: ak.attribute(m, image(1, s), method, target=3, **options) for side in SIDES}


def image(count, side=224):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))


SERIES = {
    **{f"{method}, pixels": pixels(method) for method in ("gradient", "guided_backprop", "deconvnet")},
    # as many windows at every size
    "occlusion, pixels": {
        side * side: lambda m, s=side: ak.attribute(m, image(1, s), "occlusion", target=3, window=s // 7, stride=s // 7)
        for side in SIDES
    },
    "occlusion, windows": {
        len(range(0, 224 - 32 + step, step)) ** 2: lambda m, step=step: ak.attribute(
            m, image(1), "occlusion", target=3, window=32, stride=step
        )
        for step in (32, 24, 16, 12, 8, 6)
    },
    "project, units": {
        count: lambda m, count=count: ak.project(m, image(1), "layer3.1.conv2", range(count))
        for count in (8, 16, 32, 64, 128, 256)
    },
    **{
        f"{method}, batch": {
            count: lambda m, count=count, method=method: ak.attribute(m, image(count), method, target=3)
            for count in (1, 2, 4, 8, 16, 32)
        }
        for method in ("gradient", "deconvnet")
    },
}


@pytest.mark.parametrize("name", SERIES)
def test_growth(model, name):
    sizes = list(SERIES[name])
    seconds = {}
    for size, run in SERIES[name].items():
        run(model)
        times = []
        for _ in range(ROUNDS):
            start = time.perf_counter()
            run(model)
            times.append(time.perf_counter() - start)
        seconds[size] = statistics.median(times)
    exponent = float(np.polyfit(np.log(sizes), np.log([seconds[size] for size in sizes]), 1)[0])
    print(f"\n{name}: exponent {exponent:.2f}; " + ", ".join(f"{n}: {s:.3f} s" for n, s in seconds.items()))
    row = {"sizes": sizes, "seconds": list(seconds.values()), "exponent": exponent}
    keep("growth", lambda known: known.setdefault("series", {}).update({name: row}))
    assert exponent < 1.2
