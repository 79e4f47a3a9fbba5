"""Gradient, guided backprop and deconvnet against Captum's: time, and memory three ways.

*Time*: both in one process in turns, the median of the ratios; first all networks in this process one after the other,
then each in a process of its own, then single images. *Kept*: bytes that operations keep for the way back,
each storage once, the model's own parameters and buffers left out. *Peak*: the most bytes that torch has allocated at
once during the call (its profiler's count), and for ours all that is kept besides: it lies in memory maps that torch
does not count. *Process*: what the resident memory rises by above that of a process
holding the model, the median over subprocesses in turns. Weights are random; the work is the same for all of them.

Run ``pytest -s -o python_files='bench_*.py' tests/benchmarks/bench_gradients.py``. Results go to
``out/bench/gradients.json``.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path

import captum.attr
import pytest
import timm
import torch
import torchvision
from bench_tools import keep_row, kept, summary
from torch import nn
from torch.profiler import ProfilerActivity, profile

import attribkit as ak

BATCH, REPEATS, PROCESSES = 8, 5, 3
METHODS = {
    "gradient": lambda model, x: captum.attr.Saliency(model).attribute(x, target=3, abs=False),
    "guided_backprop": lambda model, x: captum.attr.GuidedBackprop(model).attribute(x, target=3),
    "deconvnet": lambda model, x: captum.attr.Deconvolution(model).attribute(x, target=3),
}
#: The last is the one before with ReLU for ReLU6, of which Captum's guided backprop and deconvnet know nothing.
TIMED = ("resnet50", "vgg16", "resnet18", "mobilenetv2_100", "mobilenetv2_100 with ReLU")
#: The most of Captum's that may be kept for the way back, and allocated at once.
MEMORY = {"resnet50": (1 / 15, 1 / 4), "vgg16": (1 / 10, 1 / 2)}


def network(name):
    torch.manual_seed(0)
    name, with_relu, _ = name.partition(" with ReLU")
    factory = getattr(torchvision.models, name, None)
    options = {"act_layer": nn.ReLU} if with_relu else {}
    model = (factory(weights=None) if factory is not None else timm.create_model(name, **options)).eval()
    for module in model.modules():
        if hasattr(module, "inplace"):
            module.inplace = False  # as Captum needs it
    return model


def image(count=BATCH, size=224):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def call(who, model, x, method):
    """Run one of the two; return the map."""
    if who == "ours":
        return ak.attribute(model, x, method, 3).values
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Captum's, on its hooks
        return METHODS[method](model, x.clone().requires_grad_()).detach()


# -- the record --------------------------------------------------------------------------------------------------------


def record(**row):
    """Print a row and put it into out/bench/gradients.json in place of the one it repeats."""
    print("\n" + ", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))
    keep_row("gradients", {"batch": BATCH, **row}, ("figure", "model", "method", "threads"))


# -- time --------------------------------------------------------------------------------------------------------------


def timed(model, method, x=None, repeats=REPEATS):
    """Return the seconds of both, by name."""
    x = image() if x is None else x
    seconds = {"ours": [], "captum": []}
    for number in range(repeats + 1):
        # each goes first every other time: the first finds the allocator as the other has left it
        for who in sorted(seconds, reverse=bool(number % 2)):
            start = time.perf_counter()
            call(who, model, x, method)
            seconds[who].append(time.perf_counter() - start)
    return {who: found[1:] for who, found in seconds.items()}  # the first warms up


def timed_alone(name, threads):
    """Print the seconds of both by method, in this fresh process."""
    torch.set_num_threads(int(threads))
    model = network(name)
    print(json.dumps({method: timed(model, method) for method in METHODS}))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", TIMED)
def test_time(name, method, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        keep_time("time", name, method, threads, timed(network(name), method))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", TIMED)
def test_time_in_a_process_of_its_own(name, threads):
    command = [sys.executable, __file__, "timed_alone", name, str(threads)]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    for method, seconds in json.loads(run.stdout.splitlines()[-1]).items():
        keep_time("time alone", name, method, threads, seconds)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("size", [32, 224])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2_100"])
def test_time_of_one_image(name, method, size, threads):
    """Where little is computed, Python's share is large; calls after the first two do without the model's code."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        seconds = timed(network(name), method, image(1, size), repeats=21)
        keep_time(f"one image of {size}", name, method, threads, seconds)
    finally:
        torch.set_num_threads(before)


def keep_time(figure, name, method, threads, seconds):
    """Record what `timed` found."""
    ours, captums = seconds["ours"], seconds["captum"]
    ratios = [a / b for a, b in zip(ours, captums, strict=True)]
    record(
        figure=figure,
        model=name,
        method=method,
        threads=threads,
        ratio=statistics.median(ratios),
        ratios=summary(ratios),
        ours=summary(ours),
        captum=summary(captums),
        unit="s",
    )


@pytest.mark.parametrize("method", ["guided_backprop", "deconvnet"])
def test_captum_leaves_relu6_alone(method):
    """So on MobileNetV2 what these take of Captum's time is a gradient's; with ReLU both do the same work."""
    x = image()[:1]
    for name, alone in (("mobilenetv2_100", True), ("mobilenetv2_100 with ReLU", False)):
        model = network(name)
        assert torch.equal(call("captum", model, x, method), call("captum", model, x, "gradient")) == alone
        ours, captums = (call(who, model, x, method) for who in ("ours", "captum"))
        assert not torch.equal(ours, call("ours", model, x, "gradient"))
        assert ((ours - captums).abs().max() > 1e-4 * captums.abs().max()) == alone


# -- memory ------------------------------------------------------------------------------------------------------------


def peak(work):
    """The most bytes allocated at once, above those before the call."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        work()
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", MEMORY)
def test_allocated(name, method):
    model, x = network(name), image()
    maps = 0
    for number, (figure, measure) in enumerate({"kept": lambda w: kept(model, w), "peak": peak}.items()):
        ours, captums = (measure(lambda who=who: call(who, model, x, method)) for who in ("ours", "captum"))
        ours += maps  # torch does not count these
        maps = ours
        ratio = ours / captums
        record(figure=figure, model=name, method=method, ratio=ratio, ours=ours, captum=captums, unit="byte")
        assert ratio <= MEMORY[name][number]


def resident(field):
    """Bytes of this process's resident memory now (VmRSS), or the most since its record was cleared (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def rise(who, name, method):
    """Print what one call raises the resident memory by, in this fresh process."""
    torch.set_num_threads(1)
    model, x = network(name), image()
    call(who, model, x[:1, :, :32, :32].contiguous(), method)  # imports and set-up are no part of it
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    call(who, model, x, method)
    print(resident("VmHWM") - before)


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the system keeps no record to clear")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", MEMORY)
def test_process(name, method):
    rises = {"ours": [], "captum": []}
    for _ in range(PROCESSES):
        for who, found in rises.items():
            run = subprocess.run(
                [sys.executable, __file__, "rise", who, name, method], check=True, capture_output=True, text=True
            )
            found.append(int(run.stdout.split()[-1]))
    ours, captums = (summary(rises[who]) for who in ("ours", "captum"))
    ratio = ours["median"] / captums["median"]
    # no bound: between the same calls it differs by half, with what the C library's allocator gives back to the system
    record(figure="process", model=name, method=method, ratio=ratio, ours=ours, captum=captums, unit="byte")


# -- the same maps -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet50", "vgg16"])
def test_the_gradient_is_autograds_to_the_bit(name):
    model, x = network(name), image()
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(model(leaf)[:, 3].sum(), leaf)
    assert torch.equal(call("ours", model, x, "gradient"), expected)


@pytest.mark.parametrize("name", ["resnet18", "vgg16"])
@pytest.mark.parametrize("method", METHODS)
def test_the_maps_are_captums(name, method):
    model, x = network(name), image()[:2]
    assert any(isinstance(module, nn.ReLU) for module in model.modules())
    ours, captums = (call(who, model, x, method) for who in ("ours", "captum"))
    torch.testing.assert_close(ours, captums, rtol=0, atol=1e-5 * float(captums.abs().max()))


if __name__ == "__main__":
    {"rise": rise, "timed_alone": timed_alone}[sys.argv[1]](*sys.argv[2:])
