"""What every method is held to when it is called as users call it, by `attribkit.attribute`."""

from __future__ import annotations

import contextlib
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attribkit.api import attribute
from attribkit.attribution import Attribution
from attribkit.method import Method
from attribkit.testing import traces
from attribkit.testing.raw import CheckError, call, explain, require_equal, resolve
from attribkit.testing.registry import check

__all__ = ["check_front_door", "check_save_and_load", "check_threads"]


def _attribute(method: Method, model: nn.Module, inputs: Tensor, target: Any, **options: Any) -> Attribution:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return attribute(model, inputs, method, target, **options)


@check(cases={"most_images": 2})
def check_front_door(method: Method, model: nn.Module, inputs: Tensor, target: Any) -> None:
    """`attribkit.attribute` gives the same map: sample by sample too, from a model in train mode, without gradients."""
    expected = explain(method, model, inputs, target)
    require_equal(_attribute(method, model, inputs, target).values, expected, "by attribute() the map", names="raw")
    split = _attribute(method, model, inputs, target, batch_size=1)
    require_equal(split.values, expected, "with batch_size=1 the map", names="raw")
    for name, mode in (("no_grad", torch.no_grad), ("inference_mode", torch.inference_mode)):
        model.train()
        with mode():
            found = _attribute(method, model, inputs, target).values
        model.eval()
        require_equal(found.clone(), expected, f"from a model in train mode under {name}() the map", names="raw")


@check(cases={"most_images": 2})
def check_save_and_load(method: Method, model: nn.Module, inputs: Tensor, target: Any) -> None:
    """What is saved is loaded again: values, scores and extras."""
    made = _attribute(method, model, inputs, target)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "map.safetensors"
        made.save(path)
        loaded = Attribution.load(path)
    pairs: dict[str, tuple[Tensor, Any]] = {"values": (made.values, loaded.values)}
    pairs["scores"] = (made.scores, loaded.scores)
    pairs |= {f"extras[{key!r}]": (value, loaded.extras.get(key)) for key, value in made.extras.items()}
    for name, (one, other) in pairs.items():
        if not isinstance(other, Tensor) or one.dtype != other.dtype or not _same(one, other):
            raise CheckError(f"{name} is not what was saved")


def _same(one: Tensor, other: Tensor) -> bool:
    """Tell whether two tensors of a dtype hold the same numbers; what is no number equals what is none."""
    if one.shape != other.shape:
        return False
    equal = one == other
    return bool((equal | ((one != one) & (other != other))).all())


@check(
    "thread_safe",
    cases={"count": 2, "units": False, "most": 3, "extra": 1},
    arguments=lambda case: (*case.arguments(), *case.extra),
)
def check_threads(method: Method, model: nn.Module, inputs: Tensor, target: Any, seed: int) -> None:
    """Two threads on one model get what each gets alone, and a plain run beside them is undisturbed.

    First they take turns, operation by operation, in a drawn order; then they run freely.
    """
    parts = [(inputs[i : i + 1].clone(), target[i : i + 1]) for i in range(2)]
    alone = [explain(method, model, *part) for part in parts]
    resolved = [resolve(model, *part) for part in parts]
    with torch.no_grad():
        scores = model(inputs)

    def attribute(i: int) -> None:
        found = call(method, model, parts[i][0], resolved[i])
        require_equal(found, alone[i], "beside another thread the map", names="alone")

    def run() -> None:
        with torch.no_grad():
            require_equal(model(inputs), scores, "a plain run beside them returns scores", names="alone")

    jobs = [lambda: attribute(0), lambda: attribute(1), run]
    _in_threads(jobs, traces.Turns(len(jobs), seed))
    _in_threads([lambda job=job: [job() for _ in range(3)] for job in jobs], None)  # type: ignore[misc]


def _in_threads(jobs: Sequence[Callable[[], Any]], turns: traces.Turns | None) -> None:
    """Run each job in a thread of its own and raise what the first to fail raised."""
    problems: list[BaseException] = []
    start = threading.Barrier(len(jobs))

    def work(number: int) -> None:
        try:
            start.wait(30)
            with turns.taken_by(number) if turns is not None else contextlib.nullcontext():
                jobs[number]()
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(jobs))]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    if problems:
        raise problems[0]
