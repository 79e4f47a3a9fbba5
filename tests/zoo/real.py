"""One model with real numbers, in float64: every method against a reference that shares nothing with the engine."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

import oracle
import torch
from torch import Tensor, nn

import attribkit as ak

from .meta import GRADIENTS, summary, unsaid
from .names import family, input_size, make, parameters

TOLERANCE = 1e-9  # of the largest reference value

# Models that would take minutes or too much memory: options, the image's side, and what the table says of it.
REDUCED: dict[str, tuple[dict[str, Any], int, str]] = {
    "convmixer_768_32": ({}, 112, "image reduced from 224"),
    "csatv2": ({}, 256, "image reduced from 512"),
    "deepseek_vit_412m": ({"depth": 6}, 182, "image reduced from 546, depth to 6"),
    "gemma4_vit_167m": ({}, 192, "image reduced from 768"),
    "naflexvit_base_patch16_parfac_gap": ({}, 192, "image reduced from 384"),
    "nasnetalarge": ({}, 224, "image reduced from 331"),
    "pnasnet5large": ({}, 224, "image reduced from 331"),
    "qwen3_vit_88m": ({}, 192, "image reduced from 768"),
    "sam2_hiera_tiny": ({}, 224, "image reduced from 896"),
}


def check(name: str) -> dict[str, Any]:
    """Return what was found about a model; ``failures`` is empty where everything is as it should be."""
    began = time.monotonic()
    options, side, note = REDUCED.get(name, ({}, 0, ""))
    torch.manual_seed(0)
    model = randomise(make(name, **options).double())
    size = (3, side, side) if side else input_size(model)
    x = torch.randn(1, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations in the models' own code
        with torch.no_grad():
            output = model(x)
        target = None if oracle._logits(output).ndim == 2 else weighted(output)
        sites = ak.inspect(model, x).sites
        found, errors, rectifiers, failures = _inverse(model, x, target)
        reference = _autograd(model, x, target, output)
        errors["autograd"], problems = compare(found["gradient"].values, reference, "gradient against autograd")
        failures += problems
        errors["occlusion"], problems = _occlusion(model, x, target, output)
        failures += problems
    coverages = {method: found[method].coverage for method in GRADIENTS}
    failures += [f"{method}: {problem}" for method in GRADIENTS for problem in unsaid(sites, coverages[method])]
    counted = coverages["guided_backprop"].rewritten
    if rectifiers > counted:
        failures.append(f"the graph has {rectifiers} rectifiers, the engine {counted}")
    return {
        "name": name,
        "family": family(name),
        "parameters": parameters(model),
        "input": list(x.shape[1:]),
        "note": note,
        "target": "class" if target is None else "weighted sum of the output",
        "rectifiers": rectifiers,
        **summary(sites, coverages),
        "errors": errors,
        "seconds": round(time.monotonic() - began, 1),
        "failures": failures,
    }


def randomise(model: nn.Module) -> nn.Module:
    """Draw what a fresh model leaves degenerate, so that every branch carries a signal that can be wrong.

    A parameter that is one constant near zero (heads, layer scales, last gains of residual branches, biases) is drawn
    from N(0, 0.02), a layer's running statistics from N(0, 0.1) and U(0.5, 1.5).
    """
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            low, high = parameter.aminmax()
            if low == high and low.abs() < 0.01:
                parameter.normal_(0, 0.02, generator=generator)
        for module in model.modules():
            if isinstance(getattr(module, "running_mean", None), Tensor):
                module.running_mean.normal_(0, 0.1, generator=generator)
            if isinstance(getattr(module, "running_var", None), Tensor):
                module.running_var.uniform_(0.5, 1.5, generator=generator)
    return model


def weighted(output: Any) -> Callable[[Any], Tensor]:
    """Return a callable target for an output that is no [N, K]: a sum with random weights of both signs."""
    shape = oracle._logits(output).shape[1:]
    weights = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))

    def weighted_sum(out: Any) -> Tensor:
        return (oracle._logits(out) * weights).flatten(1).sum(1)

    return weighted_sum


def compare(found: Tensor, reference: Tensor, what: str) -> tuple[float, list[str]]:
    """Return the largest error relative to the largest reference value, and what is wrong."""
    largest = reference.abs().max()
    if not bool(largest > 0) or not bool(torch.isfinite(reference).all()):
        return float("nan"), [f"{what}: the reference is zero or not finite (largest value {float(largest)})"]
    error = float((found - reference).abs().max() / largest)
    return error, [] if error <= TOLERANCE else [f"{what}: relative error {error:.1e}"]


def _inverse(model: nn.Module, x: Tensor, target: Any) -> tuple[dict[str, Any], dict[str, float], int, list[str]]:
    """Return the engine's attributions, their errors, the number of rectifiers in the graph, and the failures."""
    found, errors, failures, rectifiers, maps = {}, {}, [], 0, {}
    for method in GRADIENTS:
        reference = oracle.explain(model, x, method, target)
        found[method] = ak.attribute(model, x, method=method, target=target)
        errors[method], problems = compare(found[method].values, reference.values, method)
        failures += problems
        _, problems = compare(found[method].scores, reference.scores, f"{method}'s score")
        failures += problems
        rectifiers, maps[method] = reference.rectifiers, reference.values
    # a reference in which no rule was applied would agree with an engine that does nothing
    same = [method for method in GRADIENTS[1:] if torch.equal(maps[method], maps["gradient"])]
    if rectifiers and same:
        failures.append(f"the reference of {same} is the plain gradient in spite of {rectifiers} rectifiers")
    return found, errors, rectifiers, failures


def _autograd(model: nn.Module, x: Tensor, target: Any, output: Any) -> Tensor:
    leaf = x.clone().requires_grad_()
    out = model(leaf)
    score = target(out) if target is not None else oracle._logits(out)[:, int(oracle._logits(output).argmax())]
    (values,) = torch.autograd.grad(score.sum(), leaf)
    return values


def _occlusion(model: nn.Module, x: Tensor, target: Any, output: Any) -> tuple[float, list[str]]:
    height, width = x.shape[-2:]
    window, stride = (height // 2, width // 2), (height // 3, width // 2)
    if target is None:
        klass = int(oracle._logits(output).argmax())

        def score(image: Tensor) -> Tensor:
            return oracle._logits(model(image))[0, klass]
    else:

        def score(image: Tensor) -> Tensor:
            return target(model(image))[0]

    rows, columns = _starts(height, window[0], stride[0]), _starts(width, window[1], stride[1])
    scores, total, count = [], torch.zeros(height, width).double(), torch.zeros(height, width).double()
    with torch.no_grad():
        clean = score(x)
        for top in rows:
            for left in columns:
                occluded = x.clone()
                place = slice(top, top + window[0]), slice(left, left + window[1])
                occluded[0, :, place[0], place[1]] = 0
                scores.append(score(occluded))
                total[place] += clean - scores[-1]
                count[place] += 1
    found = ak.attribute(model, x, method="occlusion", target=target, window=window, stride=stride)
    # a drop is a difference of two scores: what is exact to 1e-9 is the score
    largest = max(float(value.abs()) for value in (clean, *scores))
    drops = total / count.clamp(min=1)
    if not bool(drops.abs().max() > 0):
        return float("nan"), ["occlusion: the reference is zero"]
    error = float((found.values[0] - drops).abs().max()) / largest
    by_position = torch.stack(scores).reshape(1, len(rows), len(columns))
    if found.extras["score_map"].shape != by_position.shape:
        return error, [f"occlusion: score_map is {tuple(found.extras['score_map'].shape)}, not {by_position.shape}"]
    error = max(error, float((found.extras["score_map"] - by_position).abs().max()) / largest)
    return error, [] if error <= TOLERANCE else [f"occlusion: error {error:.1e} of the largest score"]


def _starts(size: int, window: int, stride: int) -> list[int]:
    starts = [0]
    while starts[-1] + window < size:
        starts.append(starts[-1] + stride)
    return starts
