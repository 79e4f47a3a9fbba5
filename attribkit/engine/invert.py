"""From inputs to a map by inverse layers: one forward pass with a table attached, one way back."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from attribkit.engine import coverage
from attribkit.engine.ends import GraphWanted
from attribkit.engine.lean import passes
from attribkit.engine.lean.replay import Replay
from attribkit.engine.ops import Vocabulary
from attribkit.engine.table import Table
from attribkit.engine.walk import Walk
from attribkit.errors import ModelError
from attribkit.targets import PendingTarget, Target

if TYPE_CHECKING:
    from attribkit.pluginmanager import PluginManager

#: Elements of an input below which what autograd keeps of an operation is not worth the time that a step of ours takes.
LEAST = 1 << 14


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
    guard: Callable[[], None] | None = None,
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
    guard
        Called before the model is: see `attribkit.engine.state.pristine`.

    Raises
    ------
    UnknownNameError
        The target's layer is not called in the forward pass.
    """
    x = leaf(inputs)
    kwargs = target.forward_kwargs if isinstance(target, PendingTarget) else target.kwargs_for(index)
    layer = target.layer
    known = passes.prepared(model, x, table) if layer is None and not kwargs else None
    if isinstance(known, Replay) and (found := _again(known, model, x, target, index, unit_signal)):
        return found
    noting = known if isinstance(known, passes.Noting) else None
    if guard is not None:
        guard()
    walk, output = up(model, x, table, layer, kwargs, lean=True, least=LEAST, noting=noting)
    observed = output if layer is None else walk.catch(layer)
    coverage.note(walk.sites, walk.rewritten, complete=walk.complete)
    resolved = target.resolve(observed, model) if isinstance(target, PendingTarget) else target
    origin, signal, scores = _start(resolved, observed, index, unit_signal)
    try:
        values = _carry_back(origin, x, signal)
    except RuntimeError as error:
        if walk.lean is None or not walk.lean.left or not _is_of_writing(error):
            raise
        # the model writes over what autograd has kept: again, with nothing left to autograd that need not be
        x = leaf(inputs)
        walk, output = up(model, x, table, layer, kwargs, lean=True)
        origin, signal = resolved.start(output if layer is None else walk.catch(layer), index, unit_signal)
        values = _carry_back(origin, x, signal)
    return Inverted(values, scores, resolved)


def _start(target: Target, observed: Any, index: Tensor | None, unit_signal: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return what the signal starts from, the signal, and the scores [N]."""
    origin, signal = target.start(observed, index, unit_signal)
    # a copy, for the model may write over it; and a caller's function is not asked twice: it may write, too
    starts_at_scores = type(target).start is Target.start
    scores = origin.detach().clone() if starts_at_scores else target.read(observed, index).detach()
    return origin, signal, scores


def _is_of_writing(error: RuntimeError) -> bool:
    """Tell whether it is torch's error for what has been written over since autograd kept it."""
    return type(error) is RuntimeError and "modified by an inplace operation" in str(error)


def up(
    model: nn.Module,
    x: Tensor,
    table: Table,
    layer: str | None,
    kwargs: dict[str, Any] | None = None,
    *,
    lean: bool = False,
    least: int = 0,
    layouts: bool = False,
    noting: passes.Noting | None = None,
) -> tuple[Walk, Any]:
    """Make the forward pass, keeping as little as can be; return the walk and the model's output.

    Parameters
    ----------
    model, table
        As for `invert`.
    x
        The leaf, [N, C, H, W].
    layer
        Where the pass may end; None: at the model's output.
    kwargs
        Further arguments of the model's forward.
    lean, least, layouts
        See `Walk`. A model that differentiates on its way up runs a second time, with every operation's own graph; one
        in which torch raises while maps lie otherwise than torch lays them out, without such maps.
    noting
        What has the pass noted, to be made again without the model's code; nothing is then left to autograd.
    """
    again = failed = False
    while True:
        recorder = noting.recorder if noting is not None else None
        how: dict[str, Any] = {"layouts": layouts, "lean": lean and not again, "keeps_graphs": again}
        how |= {"least": 0 if recorder is not None else least, "recorder": recorder}
        walk = Walk(model, table, vocabulary(), layers=[layer], stop=layer is not None, **how)
        try:
            # not the leaf itself: a model may begin with an in-place operation
            entry = x.clone() if recorder is None else recorder.begin(x.clone())
            output = walk.run(entry, **(kwargs or {}))
        except (GraphWanted, Exception) as error:
            if walk.wanted and not again:
                again = True
            elif failed or walk.lean is None or not walk.lean.pixels.any or type(error) is not RuntimeError:
                raise
            else:  # torch's own, maybe of something that nobody has seen get hold of a map laid out otherwise
                walk.lean.pixels.give_up()
                failed = True
        else:
            if noting is not None:
                noting.end(walk, output)
            if not walk.wanted or again:  # or the model has caught it
                return walk, output
            again = True
        noting = None


def _again(
    replay: Replay,
    model: nn.Module,
    x: Tensor,
    target: Target | PendingTarget,
    index: Tensor | None,
    unit_signal: str,
) -> Inverted | None:
    """Make a noted pass again and carry the signal back; None where it cannot be: someone else is at it, or it fails.

    What then comes of it comes of the model's own pass.
    """
    if not replay.mine.acquire(blocking=False):
        return None
    try:
        try:
            made = replay.up(x)
        except Exception:
            passes.refuse(model, replay)
            return None
        output, leaf = made.output, made.leaf
        assert output is not None
        assert leaf is not None
        coverage.note(replay.sites, replay.rewritten, complete=True)
        resolved = target.resolve(output, model) if isinstance(target, PendingTarget) else target
        origin, signal, scores = _start(resolved, output, index, unit_signal)
        arrived = []
        try:
            found = _signal_at(leaf, origin, signal)
        except RuntimeError as error:
            if not _is_of_writing(error):
                raise
            passes.refuse(model, replay)
            return None
        if not made.is_as_it_was():
            return None
        values = None
        if found is not None:
            arrived.append(found)
            del output, leaf, origin, signal, found  # the tail's graph is not needed on the way back
            values = made.back(arrived)
        return Inverted(torch.zeros_like(x).detach() if values is None else values, scores, resolved)
    finally:
        replay.mine.release()


def _carry_back(origin: Tensor, x: Tensor, signal: Tensor) -> Tensor:
    values = _signal_at(x, origin, signal)
    return torch.zeros_like(x).detach() if values is None else values


def _signal_at(x: Tensor, origin: Tensor, signal: Tensor) -> Tensor | None:
    """Carry a signal back by autograd, None where none arrives."""
    if not origin.requires_grad:
        raise ModelError("the score does not depend on the inputs: the model detaches them or runs without gradients")
    if origin.ndim == 1 and not origin.is_complex():
        # a signal that is handed over has its shape looked at by sympy, whose import takes longer than many a call
        (values,) = torch.autograd.grad((origin * signal).sum(), x, allow_unused=True)
    else:
        (values,) = torch.autograd.grad(origin, x, signal, allow_unused=True)
    return None if values is None else values.detach()
