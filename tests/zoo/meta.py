"""One model on the meta device: every method forward and back, and every activation accounted for."""

from __future__ import annotations

import time
import warnings
from collections import Counter
from typing import Any

import torch
from oracle import _logits
from torch import Tensor

import attribkit as ak

from .activity import Activity, unaccounted, watch
from .names import family, input_size, make_on_meta, parameters

GRADIENTS = ("gradient", "guided_backprop", "deconvnet")
REWRITTEN = {
    "gradient": set(),
    "guided_backprop": {"rectifier"},
    "deconvnet": {"rectifier", "max_pool", "contrast_norm"},
}


def check(name: str, size: tuple[int, int, int] | None = None) -> dict[str, Any]:
    """Return what was found about a model; ``failures`` is empty where everything is as it should be.

    Parameters
    ----------
    name
        The model.
    size
        (channels, height, width) of the input; None: the model's own.
    """
    began, model = time.monotonic(), make_on_meta(name)
    x = torch.empty(1, *(size or input_size(model)), device="meta")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations in the models' own code
        activity, output = watch(model, x)
        inspection = ak.inspect(model, x, method="deconvnet")
        failures = unaccounted(activity, inspection.sites)
        if failures:  # some models make tables in their first pass and keep them
            activity, output = watch(model, x)
            failures = unaccounted(activity, inspection.sites)
    coverages = {}
    for method in GRADIENTS:
        coverages[method], problems = _attribution(model, x, method, output, activity)
        failures += [f"{method}: {problem}" for problem in (*problems, *unsaid(inspection.sites, coverages[method]))]
    if inspection.coverage.kinds != coverages["deconvnet"].kinds:
        failures.append(f"inspect says {inspection.coverage.kinds}, attribute {coverages['deconvnet'].kinds}")
    return {
        "name": name,
        "family": family(name),
        "parameters": parameters(model),
        "input": list(x.shape[1:]),
        "operations": dict(Counter(event.group for event in activity.events)),
        "rectifiers": activity.rectifiers,
        **summary(inspection.sites, coverages),
        "seconds": round(time.monotonic() - began, 1),
        "failures": failures,
    }


def summary(sites: list[Any], coverages: dict[str, Any]) -> dict[str, Any]:
    """Return the numbers of sites, those rewritten by kind and method, and those left plain with the reason."""
    guided = coverages["guided_backprop"]
    rewritten = {
        method: {kind: done for kind, (done, _) in coverages[method].kinds.items() if done} for method in GRADIENTS[1:]
    }
    by_name = {site.name: site for site in sites}
    left = Counter(f"{by_name[name].kind}|{by_name[name].op}|{why}" for name, why in guided.left)
    kinds = {kind: total for kind, (_, total) in guided.kinds.items()}
    return {"sites": len(sites), "kinds": kinds, "rewritten": rewritten, "left": dict(left)}


def unsaid(sites: list[Any], coverage: Any) -> list[str]:
    """Return what is neither rewritten as the method's definition has it nor listed with a reason."""
    must, problems = REWRITTEN[coverage.method], []
    for kind, (done, total) in coverage.kinds.items():
        if done != (total if kind in must else 0):
            problems.append(f"{done} of {total} sites of kind {kind} are rewritten")
    if sum(total for _, total in coverage.kinds.values()) != len(sites):
        problems.append(f"{len(sites)} sites, {coverage.kinds}")
    listed = dict(coverage.left)
    return problems + [
        f"{site.name} ({site.kind}, {site.op}) is left plain without a reason"
        for site in sites
        if coverage.applies and site.kind in {"gate", "nonlinear", "max_pool"} - must and not listed.get(site.name)
    ]


def _attribution(model: Any, x: Tensor, method: str, output: Any, activity: Activity) -> tuple[Any, list[str]]:
    target = 0 if _logits(output).ndim == 2 else _first_value
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = ak.attribute(model, x, method=method, target=target)
    problems = []
    if found.values.shape != x.shape or found.values.device.type != "meta" or found.scores.shape != (1,):
        problems.append(f"the map is {tuple(found.values.shape)} on {found.values.device}")
    warned = any(issubclass(warning.category, ak.CoverageWarning) for warning in caught)
    if warned != (method != "gradient" and activity.rectifiers == 0):
        problems.append(f"CoverageWarning is {'' if warned else 'not '}given for {activity.rectifiers} rectifiers")
    return found.coverage, problems


def _first_value(output: Any) -> Tensor:
    return _logits(output).flatten(1)[:, 0]
