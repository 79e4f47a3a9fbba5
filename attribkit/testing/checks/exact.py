"""What the names gradient, guided_backprop and deconvnet promise: the definitions, worked out independently."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from attribkit.method import Method
from attribkit.testing import reference
from attribkit.testing.case import Case
from attribkit.testing.raw import CheckError, explain, require_equal, resolve
from attribkit.testing.registry import check, whole_case

__all__ = [
    "check_equals_autograd",
    "check_equals_deconvnet",
    "check_equals_guided_backprop",
    "check_finite_differences",
]


@check("gradient", cases={})
def check_equals_autograd(method: Method, model: nn.Module, inputs: Tensor, target: Any) -> None:
    """The map is what `torch.autograd.grad` says of the score."""
    x = inputs.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(resolve(model, inputs, target).scores(model, x).sum(), x)
    require_equal(
        explain(method, model, inputs, target), gradient, "the map is not the gradient", names="autograd says"
    )


@check(
    "gradient", cases={"count": 1, "levels": False, "extra": 1}, arguments=lambda case: (*case.arguments(), *case.extra)
)
def check_finite_differences(method: Method, model: nn.Module, inputs: Tensor, target: Any, seed: int) -> None:
    """The map says how the score changes along a drawn direction, measured by central differences.

    A step across a kink of the score proves nothing: another direction is then taken.
    """
    resolved = resolve(model, inputs, target)
    values = explain(method, model, inputs, target)
    generator = torch.Generator().manual_seed(seed)
    step = 1e-5
    for _ in range(8):
        direction = torch.randn(inputs.shape, generator=generator, dtype=inputs.dtype)
        direction /= direction.norm()
        moved = torch.cat([inputs + k * step * direction for k in (-2, -1, 0, 1, 2)])
        with torch.no_grad():
            far_below, below, here, above, far_above = resolved.scores(
                model, moved, torch.zeros(5, dtype=torch.long)
            ).tolist()
        scale = 1 + abs(here)
        slopes = [(far_above - far_below) / (4 * step), (above - below) / (2 * step)]
        bends = [(above - 2 * here + below) / step**2, (far_above - 2 * here + far_below) / (2 * step) ** 2]
        rounding = 1e-14 * scale / step**2
        if (
            abs(bends[0] - bends[1]) > 2e-4 * abs(bends[0]) + 100 * rounding
            or abs(slopes[0] - slopes[1]) > 1e-4 * scale
        ):
            continue
        said = float((values * direction).sum())
        measured = (4 * slopes[1] - slopes[0]) / 3
        if abs(said - measured) > 2e-5 * (scale + abs(measured)):
            raise CheckError(
                f"along a direction of length 1 the map says {said:.9g}, the score changes by {measured:.9g}"
            )
        return


@check("guided_backprop", cases={}, arguments=whole_case)
def check_equals_guided_backprop(method: Method, case: Case) -> None:
    """The map is guided backprop's, worked out operation by operation: σ'(x)·max(R, 0) at every rectifier."""
    expected = reference.explain(case, "guided_backprop")
    require_equal(explain(method, *case.arguments()), expected, "the map is not guided backprop's", names="worked out")


@check("deconvnet", cases={"units": "often"}, arguments=whole_case)
def check_equals_deconvnet(method: Method, case: Case) -> None:
    """The map is the explicit deconvolutional network's: max(R, 0), switches, transposed filters, no bias."""
    expected = reference.explain(case, "deconvnet")
    require_equal(explain(method, *case.arguments()), expected, "the map is not the deconvnet's", names="worked out")
