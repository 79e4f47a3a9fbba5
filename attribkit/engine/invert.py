"""From inputs to a map by inverse layers: one forward pass with a table attached, one way back."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from attribkit.engine import coverage
from attribkit.engine.ops import Vocabulary
from attribkit.engine.table import Table
from attribkit.engine.walk import Walk
from attribkit.errors import ModelError
from attribkit.targets import PendingTarget, Target, Unit

if TYPE_CHECKING:
    from attribkit.pluginmanager import PluginManager


@dataclass(frozen=True)
class Inverted:
    """A map and what it is a map of.

    Attributes
    ----------
    values : Tensor
        [N, C, H, W], or [N, K, C, H, W] for K units.
    scores : Tensor
        [N], or [N, K].
    target : Target or None
        The resolved target.
    """

    values: Tensor
    scores: Tensor
    target: Target | None


def leaf(inputs: Tensor) -> Tensor:
    """Return a leaf that shares the inputs' values and takes gradients, leaving the caller's tensor alone."""
    return (inputs.clone() if inputs.is_inference() else inputs.detach()).requires_grad_()


def vocabulary() -> Vocabulary:
    """Return the operations known, those taught by plugins included."""
    from attribkit.plugins import manager

    return _vocabulary_of(manager())


@functools.lru_cache(maxsize=1)
def _vocabulary_of(plugins: PluginManager) -> Vocabulary:
    return Vocabulary((entry.kind, entry.operation) for entry in plugins.operations)


def invert(
    model: nn.Module,
    inputs: Tensor,
    target: Target | PendingTarget,
    table: Table,
    *,
    unit_signal: str = "one",
    index: Tensor | None = None,
) -> Inverted:
    """Carry the target's signal back to the inputs through a table of inverse layers.

    Parameters
    ----------
    model
        The model, in eval mode.
    inputs
        Float tensor [N, C, H, W].
    target
        A resolved target, or one to be resolved by this very pass.
    table
        Which inverse layer goes where.
    unit_signal
        What a unit's signal starts as: ``"one"`` or ``"activation"``.
    index
        LongTensor [N]: which of the caller's samples each row belongs to.

    Raises
    ------
    UnknownNameError
        The target's layer is not called in the forward pass.
    """
    x = leaf(inputs)
    kwargs = target.forward_kwargs if isinstance(target, PendingTarget) else target.kwargs_for(index)
    walk = Walk(model, table, vocabulary(), layers=[target.layer], stop=target.layer is not None)
    # not the leaf itself: a model may begin with an in-place operation
    output = walk.run(x.clone(), **kwargs)
    observed = output if target.layer is None else walk.catch(target.layer)
    coverage.note(walk.sites, walk.rewritten, complete=walk.complete)
    resolved = target.resolve(observed, model) if isinstance(target, PendingTarget) else target
    origin, signal = resolved.start(observed, index, unit_signal)
    scores = resolved.read(observed, index).detach()
    return Inverted(_carry_back(origin, x, signal), scores, resolved)


def _carry_back(origin: Tensor, x: Tensor, signal: Tensor) -> Tensor:
    if not origin.requires_grad:
        raise ModelError("the score does not depend on the inputs: the model detaches them or runs without gradients")
    (values,) = torch.autograd.grad(origin, x, signal, allow_unused=True)
    return torch.zeros_like(x).detach() if values is None else values.detach()


def project_units(
    model: nn.Module,
    inputs: Tensor,
    layer: str,
    channels: Sequence[int],
    position: object,
    table: Table,
    *,
    unit_signal: str = "one",
    layout: str | None = None,
    chunk: int = 16,
) -> tuple[Inverted, tuple[Unit, ...]]:
    """Carry many units of one layer back after one forward pass.

    Parameters
    ----------
    model, inputs, table, unit_signal
        As for `invert`.
    layer, channels, position, layout
        The units: see `attribkit.Unit`.
    chunk
        How many units are carried at once (memory grows with it).
    """
    units = [Unit(layer, channel, position, layout) for channel in channels]  # type: ignore[arg-type]
    x = leaf(inputs)
    walk = Walk(model, table, vocabulary(), layers=[layer], stop=True)
    walk.run(x.clone())
    captured = walk.catch(layer)
    coverage.note(walk.sites, walk.rewritten, complete=walk.complete)
    targets = [PendingTarget(unit, len(inputs)).resolve(captured, model) for unit in units]
    scores = [target.read(captured).detach() for target in targets]
    if not captured.value.requires_grad:
        raise ModelError(f"layer {layer!r} does not depend on the inputs")
    batched = table.all_batched() and len(units) > 1
    maps: list[Tensor] = []
    for start in range(0, len(units), chunk):
        part = [target.start(captured, None, unit_signal)[1] for target in targets[start : start + chunk]]
        found, batched = _carry_many(captured.value, x, torch.stack(part), batched)
        maps.append(found)
    values = torch.cat(maps).transpose(0, 1).contiguous()
    return Inverted(values, torch.stack(scores, 1), None), tuple(target.describe() for target in targets)


def _carry_many(origin: Tensor, x: Tensor, signals: Tensor, batched: bool) -> tuple[Tensor, bool]:
    """Return the maps [K, N, C, H, W] of K signals, and whether they could be carried at once."""

    def back(signal: Tensor) -> Tensor:
        (values,) = torch.autograd.grad(origin, x, signal, retain_graph=True, allow_unused=True)
        return torch.zeros_like(x) if values is None else values

    if batched:
        try:
            # torch.func's vmap, not `is_grads_batched`: that one lacks batching rules for many view operations
            with quiet_vmap():
                return torch.func.vmap(back)(signals).detach(), True
        except RuntimeError:
            pass  # the model has a derivative that takes one signal at a time; a fault of its own shows again below
    return torch.stack([back(signal) for signal in signals]).detach(), False


@contextmanager
def quiet_vmap() -> Iterator[None]:
    """Keep vmap from warning that an operation without a batching rule is slow: it is as fast as one by one."""
    functorch: Any = torch._C._functorch
    functorch._set_vmap_fallback_warning_enabled(False)
    try:
        yield
    finally:
        functorch._set_vmap_fallback_warning_enabled(True)  # torch's default; it cannot be asked
