"""What every method is held to: what it returns, for whatever it is given."""

from __future__ import annotations

import copy
import itertools
import re
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from attribkit.engine.invert import vocabulary
from attribkit.method import InverseMethod, Method
from attribkit.targets import Unit
from attribkit.testing.case import Case
from attribkit.testing.operations import WRITINGS, op
from attribkit.testing.raw import CheckError, explain, largest, require_equal, resolve
from attribkit.testing.registry import TAGS, check, claims, known_failures, whole_case

__all__ = [
    "check_current_input",
    "check_declaration",
    "check_deterministic",
    "check_dtype_and_device",
    "check_finite",
    "check_precision",
    "check_right_class",
    "check_right_unit",
    "check_shape",
    "check_target_used",
    "check_unit_used",
    "check_writings",
]


@check()
def check_declaration(method: Method) -> None:
    """The method says what it is: a name, a summary of one line, tags and op kinds that exist."""
    if not isinstance(method.name, str) or not re.fullmatch(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*", method.name):
        raise CheckError(f"name is {method.name!r}, not a lower-case identifier (dots allowed)")
    if not isinstance(method.summary, str) or not method.summary or "\n" in method.summary:
        raise CheckError(f"summary is {method.summary!r}, not one line")
    unknown = sorted(set(method.tags) - set(TAGS))
    if unknown:
        raise CheckError(f"tags has {', '.join(map(repr, unknown))}; there are {', '.join(TAGS)}")
    known_failures(method, {})
    if isinstance(method, InverseMethod):
        for clause in method.table().misnamed(vocabulary()):
            raise CheckError(f"inverse_layers: {clause}")


@check(cases={})
def check_shape(method: Method, model: nn.Module, inputs: Tensor, target: Any) -> None:
    """The map has the inputs' shape."""
    values = explain(method, model, inputs, target)
    if values.shape != inputs.shape:
        raise CheckError(f"the map has shape {tuple(values.shape)}, the inputs {tuple(inputs.shape)}")


@check(cases={})
def check_dtype_and_device(method: Method, model: nn.Module, inputs: Tensor, target: Any) -> None:
    """The map has the inputs' dtype and device, in float32 and in float64, on the CPU and on a GPU if there is one."""
    devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    for device in devices:
        for dtype in (torch.float32, torch.float64):
            x = inputs.to(device, dtype)
            values = explain(method, copy.deepcopy(model).to(device, dtype), x, target)
            if values.dtype != dtype or values.device != x.device:
                raise CheckError(f"the map is {values.dtype} on {values.device}, the inputs are {dtype} on {x.device}")


@check(cases={})
def check_precision(method: Method, model: nn.Module, inputs: Tensor, target: Any) -> None:
    """In float64 nothing is rounded to float32 on the way."""
    # Values that float32 can hold prove nothing by themselves (a mask, a sign), so many different ones are asked for.
    values = explain(method, model, inputs, target).to(torch.float64)
    rounded = values.to(torch.float32).to(torch.float64)
    long = torch.unique(values[(values * 2**12).frac() != 0])
    if torch.equal(values, rounded) and len(long) > 8:
        raise CheckError(
            f"all {values.numel()} values of a float64 map are float32 numbers, such as {float(long[0])!r}"
        )
    narrow = explain(method, copy.deepcopy(model).float(), inputs.float(), target)
    single = narrow.to(torch.float64)
    if len(long) > 8 and torch.equal(single, values):
        raise CheckError("the map in float64 is the map in float32 to the last bit")


@check(cases={})
def check_finite(method: Method, model: nn.Module, inputs: Tensor, target: Any) -> None:
    """Finite inputs give a finite map: ordinary, large, and all zero."""
    for name, x in (("the inputs", inputs), ("inputs times 1000", 1000 * inputs), ("inputs of zeros", 0 * inputs)):
        with torch.no_grad():
            scores = resolve(model, x, target).scores(model, x)
        values = explain(method, model, x, target)
        if bool(scores.isfinite().all()) and not bool(values.isfinite().all()):
            raise CheckError(f"{name} give {int((~values.isfinite()).sum())} values that are not finite")


@check(cases={"most_images": 2})
def check_current_input(method: Method, model: nn.Module, inputs: Tensor, target: Any) -> None:
    """The map is of the inputs at hand: what the method or the model saw before plays no part."""
    other = -inputs.flip(-1)
    fresh = copy.deepcopy(model)
    first = explain(method, fresh, inputs, target)
    of_other = explain(method, fresh, other, target)
    again = explain(method, fresh, inputs, target)
    require_equal(again, first, "the second map of the same inputs is another one", names="the first map")
    twice = target if isinstance(target, Unit) else torch.cat([target, target])
    together = explain(method, copy.deepcopy(model), torch.cat([inputs, other]), twice)
    require_equal(first, together[: len(inputs)], "the map is not of these inputs", names="in a batch with others")
    require_equal(
        of_other, together[len(inputs) :], "the map after a call with other inputs", names="in a batch with them"
    )


def _left_and_right(case: Case) -> tuple[nn.Module, Tensor]:
    """Return the case with class 0 reading the left half of the last map, class 1 the right half, class 2 all of it."""
    model, inputs, _ = case.arguments()
    channels, height, width = case.net.shapes[-3]
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    with torch.no_grad():
        weights = last.weight.view(-1, channels, height, width)
        weights[0, :, :, width // 2 :] = 0
        weights[1, :, :, : width // 2] = 0
    return model, inputs


@check(
    cases={
        "count": 2,
        "units": False,
        "classes": 3,
        "split": True,
        "most": 2,
        "steps": ("conv", "conv_rectifier", "batch_norm", "max_pool", "residual", "concat"),
    },
    arguments=_left_and_right,
)
def check_target_used(method: Method, model: nn.Module, inputs: Tensor) -> None:
    """Classes that look at different places have different maps: the target is used."""
    x = inputs.clone().requires_grad_()
    scores = model(x)
    left, right = (torch.autograd.grad(scores[:, k].sum(), x, retain_graph=True)[0].abs().sum(1) > 0 for k in (0, 1))
    if not bool((left & ~right).any() and (right & ~left).any()):
        return  # both classes look everywhere, or a rectifier lets through one place only: maps may well be alike
    maps = [explain(method, model, inputs, torch.full((len(inputs),), k)) for k in range(3)]
    _require_different(maps, "3 classes")


@check(
    cases={"count": 2, "units": "always", "steps": ("conv", "conv_rectifier", "batch_norm", "max_pool", "gate")},
    arguments=lambda case: (*case.arguments(), case.net.shapes[case.value]),
)
def check_unit_used(method: Method, model: nn.Module, inputs: Tensor, target: Any, shape: tuple[int, ...]) -> None:
    """Units of a layer, of different channels and at opposite corners, have different maps."""
    if not isinstance(target, Unit) or len(shape) < 3 or shape[0] == 1 or shape[1] * shape[2] == 1:
        return
    corners = ((0, 0), (shape[1] - 1, shape[2] - 1))
    units = [Unit(target.layer, k, at, target.layout) for k in range(shape[0]) for at in corners]
    maps = [explain(method, model, inputs, unit) for unit in units]
    _require_different(maps, f"{len(units)} units of {target.layer!r}")


def _require_different(maps: list[Tensor], what: str) -> None:
    """Raise unless some two of the maps differ; maps of zeros prove nothing."""
    if largest(*maps) == 0:
        return
    for i, one in enumerate(maps):
        for other in maps[:i]:
            if largest(one - other) > 1e-9 * largest(one, other):
                return
    raise CheckError(f"the maps of {what} are all the same: the target is not used")


@check(
    cases={"units": False, "classes": 3, "most_images": 2, "extra": 1},
    arguments=lambda case: (*case.arguments(), case.extra[0]),
)
def check_right_class(method: Method, model: nn.Module, inputs: Tensor, target: Any, order: int) -> None:
    """The map of a class is that of the same class in another place: where classes change places, so do their maps."""
    head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    orders = list(itertools.permutations(range(head.out_features)))[1:]
    places = torch.tensor(orders[order % len(orders)])  # the class at place i of the other network
    other = copy.deepcopy(model)
    there = [module for module in other.modules() if isinstance(module, nn.Linear)][-1]
    with torch.no_grad():
        there.weight.copy_(head.weight[places])
        if there.bias is not None:
            there.bias.copy_(head.bias[places])
    expected = explain(method, model, inputs, target)
    found = explain(method, other, inputs, places.argsort()[target])
    require_equal(found, expected, f"with the classes in the order {places.tolist()} the map", names="as they were")


def _cut(case: Case) -> tuple[nn.Module, nn.Module, Tensor, Any, list[int]]:
    """Return the case, its network as far as the unit's layer with every unit there a class, and the unit's classes."""
    model, inputs, target = case.arguments()
    shape = case.net.shapes[case.value]
    ops = case.net.ops[: case.value]
    short = replace(case.net, ops=ops if len(shape) == 1 else (*ops, op("flatten", case.value))).build(case.writing)
    short.load_state_dict({name: model.state_dict()[name] for name in short.state_dict()})
    if not isinstance(target, Unit):  # no layer has a name
        return model, short, inputs, target, []
    size = 1 if len(shape) == 1 else shape[1] * shape[2]
    first = target.channel * size
    if target.position == "all":
        return model, short, inputs, target, list(range(first, first + size))
    if target.position == "max":
        with torch.no_grad():
            place = int(short(inputs)[0, first : first + size].argmax())
    else:
        row, column = target.position  # type: ignore[misc]
        place = row * shape[2] + column
    return model, short, inputs, target, [first + place]


@check(cases={"count": 1, "units": "always"}, arguments=_cut)
def check_right_unit(
    method: Method, model: nn.Module, short: nn.Module, inputs: Tensor, target: Any, classes: list[int]
) -> None:
    """The map of a unit is, but for its scale, that of the class it is in the network that ends there.

    Or of half that score's square, whose derivative is the unit's own activation: a signal may start as either.
    """
    if not classes or (len(classes) > 1 and not claims(method) & {"linear_in_seed", "perturbation", "inverse"}):
        return  # how the places of a map are weighed may depend on whether one score or a callable made them one

    def activation(outputs: Tensor) -> Tensor:
        return outputs[:, classes].sum(1)

    def half_square(outputs: Tensor) -> Tensor:
        return (outputs[:, classes] ** 2).sum(1) / 2

    found = explain(method, model, inputs, target)
    as_class = torch.tensor(classes) if len(classes) == 1 else activation
    if any(_is_multiple(found, explain(method, short, inputs, each)) for each in (as_class, half_square)):
        return
    raise CheckError(
        f"the map of {target} is no multiple of the map of class {', '.join(map(str, classes))} of the network "
        f"that ends at {target.layer!r}, which is the same: another unit is explained, or none"
    )


def _is_multiple(found: Tensor, expected: Tensor) -> bool:
    """Tell whether a map is the positive multiple of another, or zero."""
    if found.shape != expected.shape or largest(found) <= 1e-10:
        return found.shape == expected.shape
    if largest(expected) == 0:
        return False
    factor = float((found * expected).sum() / (expected * expected).sum())
    return factor > 0 and largest(found - factor * expected) <= 1e-7 * largest(found)


@check(cases={"units": False, "writings": ("modules",)}, arguments=whole_case)
def check_writings(method: Method, case: Case) -> None:
    """A network has one map: written with modules, in place, one module reused, functions, tensor methods."""
    inputs, target = case.inputs(), case.given_target()
    expected = explain(method, case.model(), inputs, target)
    for writing in WRITINGS[1:]:
        found = explain(method, case.net.build(writing), inputs, target)
        require_equal(found, expected, f"written as {writing!r} the network has another map", names="as 'modules'")


@check("deterministic", cases={})
def check_deterministic(method: Method, model: nn.Module, inputs: Tensor, target: Any) -> None:
    """Two calls give one map, whatever the states of the global random generators."""
    import random

    import numpy as np

    maps = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002  the global one is meant
        maps.append(explain(method, model, inputs, target))
    require_equal(maps[1], maps[0], "a second call gives another map", names="the first", rtol=1e-12, atol=0.0)
