"""What tag ``inverse`` adds at max pools, on networks that are one pool: where the signal goes."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from attribkit.method import Method
from attribkit.testing import reference
from attribkit.testing.case import Case
from attribkit.testing.checks.signals import leaves_plain
from attribkit.testing.operations import Op
from attribkit.testing.raw import explain, require_equal
from attribkit.testing.registry import check

__all__ = ["check_stale_switches", "check_switches", "check_unpool_adds", "check_unpool_is_undone_by_pool"]


class OnePool(nn.Module):
    """A network that is one max pool; its output is the map [N, C, h, w]."""

    def __init__(self, pool: Op) -> None:
        super().__init__()
        if pool.get("kernel") is None:
            self.pool: nn.Module = nn.AdaptiveMaxPool2d((pool.get("rows"), pool.get("columns")))
        else:
            names = {"padding": 0, "dilation": 1, "ceil": False}
            padding, dilation, ceil = (pool.get(name, default) for name, default in names.items())
            self.pool = nn.MaxPool2d(pool.get("kernel"), pool.get("stride", 1), padding, dilation, ceil_mode=ceil)

    def forward(self, x: Tensor) -> Any:
        """Return the pooled map."""
        return self.pool(x)


def _one_pool(case: Case) -> tuple[Op, Tensor, Tensor]:
    """Return the case's first pool, its inputs, and a signal without zeros of the output's shape."""
    pool = next((each for each in case.net.ops if "max_pool" in each.kind), None)
    inputs = case.inputs()
    if pool is None:  # a block without room for another: the plainest pool
        pool = Op("max_pool", (0,), (("kernel", 2), ("stride", 1)))
    with torch.no_grad():
        shape = OnePool(pool)(inputs).shape
    generator = torch.Generator().manual_seed(case.extra[0])
    return pool, inputs, torch.randn(shape, generator=generator, dtype=torch.float64)


_POOLS = {"steps": ("max_pool",), "units": False, "most": 1, "extra": 1, "levels": True}


def _unpooled(method: Method, pool: nn.Module, inputs: Tensor, signal: Tensor) -> Tensor:
    """Return what the method makes of a signal at the pool's output."""

    def weighted(outputs: Tensor) -> Tensor:
        return (outputs * signal).flatten(1).sum(1)

    return explain(method, pool, inputs, weighted)


@check("inverse", cases=_POOLS, arguments=_one_pool, applies=leaves_plain)
def check_switches(method: Method, pool: Op, inputs: Tensor, signal: Tensor) -> None:
    """A signal at one window goes to that window's maximum, the first one on ties, and to nowhere else."""
    model = OnePool(pool).eval()
    switches = reference.switches(inputs, pool, signal.shape)
    for place in range(min(signal[0, 0].numel(), 6)):
        one = torch.zeros_like(signal)
        one.flatten(2)[:, :, place] = 1.0
        expected = reference.unpool(one, switches, inputs.shape)
        require_equal(
            _unpooled(method, model, inputs, one), expected, f"the signal of window {place}", names="its maximum"
        )


@check("inverse", cases=_POOLS, arguments=_one_pool, applies=leaves_plain)
def check_unpool_adds(method: Method, pool: Op, inputs: Tensor, signal: Tensor) -> None:
    """Every window's signal is put at its switch, signals that meet there add, everything else is zero."""
    found = _unpooled(method, OnePool(pool).eval(), inputs, signal)
    expected = reference.unpool(signal, reference.switches(inputs, pool, signal.shape), inputs.shape)
    require_equal(found, expected, "the unpooled signal", names="put there one by one it is")


@check("inverse", cases=_POOLS, arguments=_one_pool, applies=leaves_plain)
def check_stale_switches(method: Method, pool: Op, inputs: Tensor, signal: Tensor) -> None:
    """Switches come from this input, never from an earlier call."""
    model = OnePool(pool).eval()
    _unpooled(method, model, -inputs.flip(-2), signal)
    found = _unpooled(method, model, inputs, signal)
    expected = reference.unpool(signal, reference.switches(inputs, pool, signal.shape), inputs.shape)
    require_equal(
        found, expected, "after a call with other inputs the unpooled signal", names="this input's switches say"
    )


@check("inverse", cases=_POOLS, arguments=_one_pool, applies=leaves_plain)
def check_unpool_is_undone_by_pool(method: Method, pool: Op, inputs: Tensor, signal: Tensor) -> None:
    """pool(unpool(y)) = y for non-negative y where windows do not overlap."""
    kernel = pool.get("kernel", 2)
    disjoint = OnePool(Op("max_pool", (0,), (("kernel", kernel), ("stride", kernel)))).eval()
    with torch.no_grad():
        shape = disjoint(inputs).shape
    y = signal.abs().flatten()[: shape.numel()]
    y = torch.cat([y, torch.ones(shape.numel() - len(y), dtype=y.dtype)]).reshape(shape)
    found = _unpooled(method, copy.deepcopy(disjoint), inputs, y)
    require_equal(disjoint(found), y, "pool(unpool(y))", names="y is")
