"""Occlusion against Captum's: the same windows, all positions, in one process, interleaved.

Run ``pytest -s -o python_files='bench_*.py' tests/benchmarks/bench_occlusion.py`` for two small models, or as a
script with models, windows and threads of your choice; ``--families`` compares the scores at every position with the
whole model's on the smallest models of many families instead. Results go to ``out/bench/occlusion.json``.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from unittest import mock

import captum.attr
import pytest
import timm
import torch
import torchvision
from bench_tools import keep_row, machine, summary

import attribkit as ak
from attribkit.builtin.occlusion import starts
from attribkit.engine.incremental import Incremental, plan
from attribkit.models import zfnet

PER_EVAL = (1, 16, 48)
#: The least ratio to Captum's best that is aimed at: window 32 by stride 16, window 16 by stride 8.
TARGETS = {
    "torchvision/vgg16": (6.5, 8.0),
    "zfnet": (4.0, 5.0),
    "torchvision/alexnet": (2.8, 4.0),
    "torchvision/resnet18": (2.7, None),
    "torchvision/resnet50": (2.7, None),
    "torchvision/mobilenet_v2": (4.0, None),
    "timm/tf_efficientnet_lite0": (3.5, None),
    "torchvision/googlenet": (2.5, None),
    "torchvision/densenet121": (1.6, None),
    "timm/efficientnet_b0": (1.0, None),
    "timm/convnext_tiny": (1.0, None),
    "timm/vit_tiny_patch16_224": (1.0, None),
}
FAMILIES = [
    "resnet10t",
    "resnext50_32x4d",
    "seresnet18",
    "res2net50_26w_4s",
    "regnetx_002",
    "regnety_002",
    "mobilenetv2_035",
    "mobilenetv3_small_050",
    "efficientnet_lite0",
    "efficientnet_b0",
    "mnasnet_small",
    "ghostnet_050",
    "densenet121",
    "vgg11",
    "inception_v3",
    "xception41",
    "dla46_c",
    "hrnet_w18_small",
    "dpn68",
    "repvgg_a0",
    "convnext_atto",
    "convnextv2_atto",
    "edgenext_xx_small",
    "mobilevit_xxs",
    "poolformer_s12",
    "vit_tiny_patch16_224",
    "deit_tiny_patch16_224",
    "swin_tiny_patch4_window7_224",
    "mixer_s16_224",
    "levit_128s",
    "coatnet_0_224",
    "nfnet_l0",
    "selecsls42",
    "vovnet39a",
    "cspresnet50",
    "rexnet_100",
    "tinynet_e",
    "lcnet_035",
    "fbnetv3_b",
    "hardcorenas_a",
]


def build(name: str, seed: int = 0) -> torch.nn.Module:
    """Return a model of random weights."""
    torch.manual_seed(seed)
    source, _, rest = name.rpartition("/")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if name == "zfnet":
            return zfnet().eval()
        if source == "torchvision":
            return getattr(torchvision.models, rest)(weights=None).eval()
        return timm.create_model(rest).eval()


def bound(model: torch.nn.Module, x: torch.Tensor, window: int, stride: int) -> float:
    """Return how many times fewer multiplications the changed rectangles need than whole maps."""
    rows, columns = ((s := starts(side, window, stride), [min(a + window, side) for a in s]) for side in x.shape[2:])
    return Incremental(model, x, (rows, columns), 0.0, 1 << 29).plan.gain()


def dense(model: torch.nn.Module, x: torch.Tensor, options: dict[str, int]) -> None:
    """Run our engine with incremental inference off: the same kernels, every map in full."""
    with mock.patch.object(plan, "COVERED", 0.0):
        ak.attribute(model, x, "occlusion", engine="incremental", **options)


def compare(name: str, window: int, stride: int, rounds: int) -> dict[str, object]:
    """Time ours and Captum's best in turns; return seconds and ratios to Captum's.

    Which number of perturbations is Captum's best is found beforehand, on every other window.
    """
    model = build(name)
    x = torch.randn(1, 3, 224, 224)
    options = {"window": window, "stride": stride, "target": 3}

    def captums(per_eval: int, step: int = stride) -> None:
        with torch.no_grad():
            captum.attr.Occlusion(model).attribute(
                x, (3, window, window), strides=(3, step, step), target=3, perturbations_per_eval=per_eval
            )

    def ours(engine: str) -> None:
        ak.attribute(model, x, "occlusion", engine=engine, **options)

    first = clocked(lambda: ours("auto"))  # the forward pass is recorded
    pilot = {n: clocked(lambda n=n: captums(n, 2 * stride)) for n in PER_EVAL}
    best = min(pilot, key=pilot.__getitem__)
    runs = {"captum": lambda: captums(best), "auto": lambda: ours("auto")}
    seconds: dict[str, list[float]] = {key: [] for key in runs}
    for _ in range(rounds):
        for key, run in runs.items():
            seconds[key].append(clocked(run))
    seconds["first"] = [first]
    seconds["full"] = [clocked(lambda: ours("full"))]
    seconds["dense"] = [clocked(lambda: dense(model, x, options))]
    found: dict[str, object] = {
        "model": name,
        "window": window,
        "stride": stride,
        "threads": torch.get_num_threads(),
        "per_eval": best,
        "bound": bound(model, x, window, stride),
        "seconds": seconds,
        "target": TARGETS.get(name, (None, None))[(window, stride) != (32, 16)],
    }
    for key in ("auto", "first", "full", "dense"):
        ratios = [a / b for a, b in zip(seconds["captum"], seconds[key], strict=False)]
        found[key] = summary(ratios)
    a = found["auto"]
    print(
        f"{name} {window}/{stride}, {found['threads']} threads: {a['median']:.2f}x ({a['min']:.2f}-{a['max']:.2f}) of "
        f"captum's {best}; first call {found['first']['median']:.2f}x; full {found['full']['median']:.2f}x; "
        f"dense {found['dense']['median']:.2f}x; "
        f"bound {found['bound']:.1f}; asked {found['target']}",
        flush=True,
    )
    return found


def clocked(run: Callable[[], None]) -> float:
    """Return how many seconds a run takes by the clock."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def worst(name: str, window: int, stride: int, size: int | None) -> dict[str, object]:
    """Return the largest difference of any position's score from the whole model's, over the largest |logit|."""
    model = build(f"timm/{name}")
    side = size or model.default_cfg["input_size"][-1]
    x = torch.randn(1, 3, side, side)
    with torch.no_grad():
        largest = model(x).abs().max()
    options = {"window": window, "stride": stride, "target": 3, "fill": 0.5}
    ours = ak.attribute(model, x, "occlusion", engine="auto", **options)
    full = ak.attribute(model, x, "occlusion", engine="full", **options)
    error = float((ours.extras["score_map"] - full.extras["score_map"]).abs().max())
    error /= float(largest) or 1.0
    incremental = bool(ours.extras["incremental"].all())
    print(f"{name}: {error:.1e} {'incremental' if incremental else 'in full'}", flush=True)
    return {"model": name, "window": window, "stride": stride, "error": error, "incremental": incremental}


@pytest.mark.parametrize("name", ["torchvision/mobilenet_v2", "torchvision/resnet18"])
def test_faster_than_captum(name):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = compare(name, 32, 16, 3)
    finally:
        torch.set_num_threads(threads)
    assert found["auto"]["median"] >= 1.5


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", help=f"default: {' '.join(TARGETS)}; with --families timm names")
    parser.add_argument("--window", type=int, default=32)
    parser.add_argument("--stride", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--families", action="store_true")
    parser.add_argument("--size", type=int, help="side of the images for --families; default each model's own")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(", ".join(f"{key} {value}" for key, value in machine().items()))
    case = ("model", "window", "stride", "threads")
    for name in arguments.models or (FAMILIES if arguments.families else TARGETS):
        try:
            if arguments.families:
                keep_row("occlusion-families", worst(name, arguments.window, arguments.stride, arguments.size), case)
            else:
                keep_row("occlusion", compare(name, arguments.window, arguments.stride, arguments.rounds), case)
        except (RuntimeError, AssertionError, ak.AttribkitError) as error:
            print(f"{name}: {error}".splitlines()[0], flush=True)


if __name__ == "__main__":
    main()
