"""What tags add: how the map follows the score it explains."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from attribkit.engine.table import Table
from attribkit.errors import InputError
from attribkit.method import InverseMethod, Method
from attribkit.targets import Unit
from attribkit.testing.operations import RECTIFIERS
from attribkit.testing.raw import CheckError, explain, require_equal, resolve
from attribkit.testing.registry import EXACT, check

__all__ = [
    "check_additivity",
    "check_adjointness",
    "check_homogeneity",
    "check_plain_without_rectifiers",
    "check_receptive_field",
    "check_scores_only",
    "check_signed",
    "leaves_plain",
]

_NO_RECTIFIERS = (*RECTIFIERS, "rectifier", "conv_rectifier", "contrast_norm")
_LINEAR = ("conv", "max_pool", "avg_pool", "batch_norm", "residual", "concat")
_PLAIN = (*_LINEAR, "norm", "dropout", "attention")
_NOTHING_GATED = (*_NO_RECTIFIERS, "gate", "squeeze_excite", "norm")


def leaves_plain(method: Method, claimed: frozenset[str]) -> bool:
    """Tell whether a method leaves everything but rectifiers and contrast norms to its ordinary derivative."""
    if "inverse" not in claimed or "occlusion" in claimed:
        return False
    if not isinstance(method, InverseMethod) or claimed & set(EXACT):
        return bool(claimed & set(EXACT))
    try:
        method.table()
    except InputError:  # every check that asks for it fails of that, check_declaration first
        return False
    others = {key: layer for key, layer in method.inverse_layers.items() if key not in ("rectifier", "contrast_norm")}
    return type(method).attribute is InverseMethod.attribute and Table(others).all_ordinary()


def _map_of(method: Method, model: nn.Module, inputs: Tensor, *weights: float) -> Tensor:
    """Return the map of a weighted sum of the first class scores."""

    def weighted(outputs: Tensor) -> Tensor:
        return sum(weight * outputs[:, k] for k, weight in enumerate(weights))  # type: ignore[return-value]

    return explain(method, model, inputs, weighted)


@check("signed", cases={"units": False, "without": _NOTHING_GATED})
def check_signed(method: Method, model: nn.Module, inputs: Tensor, target: Any) -> None:
    """Without rectifiers the map of a negated score is the negated map."""
    plain, negated = _map_of(method, model, inputs, 1.0), _map_of(method, model, inputs, -1.0)
    require_equal(negated, -plain, "the map of minus score 0", names="minus its map has")


@check("homogeneous", cases={"units": False})
def check_homogeneity(method: Method, model: nn.Module, inputs: Tensor, target: Any) -> None:
    """A score two and a half times as large has a map two and a half times as large."""
    plain, scaled = _map_of(method, model, inputs, 1.0), _map_of(method, model, inputs, 2.5)
    require_equal(scaled, 2.5 * plain, "the map of 2.5 times score 0", names="2.5 times its map has")


@check("linear_in_seed", cases={"units": False})
def check_additivity(method: Method, model: nn.Module, inputs: Tensor, target: Any) -> None:
    """The map of a weighted sum of scores is that sum of their maps."""
    one, other = _map_of(method, model, inputs, 1.0), _map_of(method, model, inputs, 0.0, 1.0)
    total = _map_of(method, model, inputs, 1.0, -2.0)
    require_equal(total, one - 2 * other, "the map of score 0 - 2·score 1", names="map 0 - 2·map 1 has")


@check("inverse", cases={"count": 1, "units": "always"})
def check_receptive_field(method: Method, model: nn.Module, inputs: Tensor, target: Any) -> None:
    """A unit's map is zero outside its receptive field: the pixels that, not being numbers, make it no number."""
    if not isinstance(target, Unit):
        return
    resolved = resolve(model, inputs, target)
    height, width = inputs.shape[-2:]
    places = torch.arange(height * width)
    tried = inputs.repeat(len(places), 1, 1, 1)
    tried.flatten(2)[places, :, places] = torch.nan
    with torch.no_grad():
        scores = resolved.scores(model, tried, torch.zeros(len(places), dtype=torch.long))
    outside = ~scores.isnan().reshape(height, width)
    values = explain(method, model, inputs, target)
    stray = (values[0].abs().amax(0) > 0) & outside
    if bool(stray.any()):
        at = stray.nonzero()[0].tolist()
        raise CheckError(
            f"pixel {at} is outside the unit's receptive field, yet has {values[0, :, at[0], at[1]].tolist()}"
        )


@check("inverse", cases={"without": _NO_RECTIFIERS, "steps": _PLAIN}, applies=leaves_plain)
def check_plain_without_rectifiers(method: Method, model: nn.Module, inputs: Tensor, target: Any) -> None:
    """On a network without rectifiers the map is the plain gradient (of a unit: by its own start)."""
    found = explain(method, model, inputs, target)
    x = inputs.detach().requires_grad_()
    scores = resolve(model, inputs, target).scores(model, x)
    (gradient,) = torch.autograd.grad(scores.sum(), x)
    if isinstance(target, Unit) and _starts_from_activation(method):
        if target.position == "all":
            return  # each place starts from its own activation: no multiple of one gradient
        gradient = gradient * scores.detach()[:, None, None, None]
    require_equal(found, gradient, "there is no rectifier, yet the map is not the gradient", names="the gradient has")


def _starts_from_activation(method: Method) -> bool:
    return getattr(method, "unit_signal", "one") == "activation" or method.name == "deconvnet"


@check(
    "inverse",
    cases={"without": _NOTHING_GATED, "steps": _LINEAR, "units": False, "extra": 2},
    arguments=lambda case: (*case.arguments()[:2], *case.extra),
    applies=leaves_plain,
)
def check_adjointness(method: Method, model: nn.Module, inputs: Tensor, first: int, second: int) -> None:
    """Linear operations are carried back by their transposes: ⟨Au, y⟩ = ⟨u, Aᵀy⟩ for drawn u and y."""
    u = torch.randn(inputs.shape, generator=torch.Generator().manual_seed(first), dtype=inputs.dtype)
    with torch.no_grad():
        shape = model(inputs).shape
    y = torch.randn(shape, generator=torch.Generator().manual_seed(second), dtype=inputs.dtype)

    def weighted(outputs: Tensor) -> Tensor:
        return (outputs * y).sum(1)

    carried = explain(method, model, inputs, weighted)
    pushed = torch.func.jvp(model, (inputs,), (u,))[1]
    require_equal(
        (u * carried).flatten(1).sum(1),
        (pushed * y).sum(1).detach(),
        "⟨u, Aᵀy⟩ by the method",
        names="⟨Au, y⟩ is",
        rtol=1e-6,
        atol=1e-8,
    )


class _Opaque(nn.Module):
    """A model that shows neither its modules nor a gradient."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.held = (model,)

    def forward(self, x: Tensor) -> Any:
        with torch.no_grad():
            return self.held[0](x)


@check("perturbation", cases={"units": False})
def check_scores_only(method: Method, model: nn.Module, inputs: Tensor, target: Any) -> None:
    """A model that shows neither its modules nor a gradient has the same map."""
    expected = explain(method, model, inputs, target)
    require_equal(
        explain(method, _Opaque(model).eval(), inputs, target), expected, "an opaque model", names="the open one"
    )
