"""What every method is held to: samples of a batch do not see each other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from attribkit.method import Method
from attribkit.targets import Unit
from attribkit.testing.raw import explain, require_equal
from attribkit.testing.registry import check

__all__ = ["check_batch_independence", "check_batch_permutation"]


@check(cases={"count": 3})
def check_batch_independence(method: Method, model: nn.Module, inputs: Tensor, target: Any) -> None:
    """Each sample's map is the one it has alone, with its own target."""
    together = explain(method, model, inputs, target)
    for i in range(len(inputs)):
        own = target if isinstance(target, Unit) else target[i : i + 1]
        alone = explain(method, model, inputs[i : i + 1].clone(), own)
        require_equal(
            together[i : i + 1], alone, f"sample {i} of {len(inputs)} has another map in a batch", names="alone"
        )


@check(cases={"count": 3})
def check_batch_permutation(method: Method, model: nn.Module, inputs: Tensor, target: Any) -> None:
    """Another order of the samples gives the maps in that order."""
    order = torch.arange(len(inputs)).roll(1)
    own = target if isinstance(target, Unit) else target[order]
    expected = explain(method, model, inputs, target)[order]
    found = explain(method, model, inputs[order], own)
    require_equal(found, expected, f"in the order {order.tolist()} the maps differ", names="in the first order")
