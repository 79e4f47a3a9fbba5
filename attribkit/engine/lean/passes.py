"""Passes kept between calls: who explains one image after the other pays for Python once.

On small maps the modules, hooks, function modes and autograd's nodes take several times as long as what is computed.
So a pass is noted, and made again from the notes for the next inputs of the same size. That is for models in whose
forward pass no code of the user's takes part (`is_known`), that consist of lean steps and sums up to a last part of any
functions, and that are what they were: modules, settings, and where their tensors are. The weights' values may change;
a step reads them where they are.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from attribkit.engine.fingerprint import fingerprint
from attribkit.engine.intercept import only_our_modes
from attribkit.engine.known import is_compiled, is_known
from attribkit.engine.layers import OF_THE_ENGINE
from attribkit.engine.lean.recorder import Recorder
from attribkit.engine.lean.replay import Replay
from attribkit.engine.lean.shortcuts import has_vectors, is_exact
from attribkit.engine.lean.watched import is_watched, saving_hooks
from attribkit.engine.tree import paths_of

if TYPE_CHECKING:
    from attribkit.engine.table import Table
    from attribkit.engine.walk import Walk

#: Of how many models passes are kept, and of how many sizes of inputs and methods of each.
MODELS, CASES = 4, 8

#: How often a pass may turn out to be none that can be made again: another thread may have had a hand in it.
ATTEMPTS = 3

_lock = threading.Lock()
_passes: WeakKeyDictionary[nn.Module, _Kept] = WeakKeyDictionary()


@dataclass
class _Known:
    """What is known of a model's passes on inputs of a size."""

    attempts: int = 0
    replay: Replay | None = None


@dataclass
class _Kept:
    """What is known of a model as it is; of what it was, nothing."""

    fingerprint: Any = None
    cases: OrderedDict[Any, _Known] = field(default_factory=OrderedDict)


class Noting:
    """Has a pass noted, and keeps what has been noted.

    Parameters
    ----------
    model
        The model.
    kept
        What is known of it.
    known
        Where to keep the pass.

    Attributes
    ----------
    recorder : Recorder
        What notes.
    """

    def __init__(self, model: nn.Module, kept: _Kept, known: _Known) -> None:
        self.recorder = Recorder(model.parameters(), model.buffers())
        self._kept, self._known = kept, known
        self._before = fingerprint(model, values=False)
        known.attempts += 1

    def end(self, walk: Walk, output: Any) -> None:
        """Keep the pass if it can be made again."""
        if walk.lean is None or walk.lean.pixels.in_vain:
            self._known.attempts -= 1  # the next one is to go otherwise
            return
        if not (walk.complete and walk.plain_graph) or walk.wanted or walk.splicer.attached:
            return
        replay = self.recorder.made(output, walk.sites, walk.rewritten)
        # a forward pass that changes its model is another one each time
        if replay is None or self._before != fingerprint(walk.model, values=False):
            return
        with _lock:
            if self._kept.fingerprint is None:
                self._kept.fingerprint = self._before
            if self._kept.fingerprint == self._before:
                self._known.replay = replay


def forget(model: nn.Module) -> None:
    """Let go of a model's passes."""
    with _lock:
        _passes.pop(model, None)


def refuse(model: nn.Module, replay: Replay) -> None:
    """Have a model run where a pass could not be made again after all."""
    with _lock:
        kept = _passes.get(model)
        for known in kept.cases.values() if kept is not None else ():
            if known.replay is replay:
                known.replay, known.attempts = None, ATTEMPTS


def prepared(model: nn.Module, x: Tensor, table: Table) -> Replay | Noting | None:
    """Return the pass to be made again, or what has this one noted; None where neither is possible, or not yet.

    The first pass on inputs of a size is made as ever: many a model is never asked again.

    Parameters
    ----------
    model, table
        The model and what is to be attached to it.
    x
        The input.
    """
    case = _case(x, table)
    if case is None:
        return None
    kept = _passes.get(model)
    if kept is not None and kept.fingerprint is not None:
        if kept.fingerprint != fingerprint(model, values=False):
            forget(model)
            kept = None
        elif (known := kept.cases.get(case)) is not None and known.replay is not None:
            return known.replay  # as it is now, the model was one that is known
    modules = paths_of(model)
    if not is_known(modules) or any(map(is_compiled, modules)):
        return None
    with _lock:
        if kept is None:
            for other in list(_passes)[: 1 - MODELS]:
                del _passes[other]
            kept = _passes[model] = _Kept()
        known = kept.cases.get(case)
        if known is None:
            kept.cases[case] = _Known()
            while len(kept.cases) > CASES:
                kept.cases.popitem(last=False)
            return None
    if known.replay is None and known.attempts < ATTEMPTS:
        return Noting(model, kept, known)
    return known.replay


def _case(x: Tensor, table: Table) -> Any:
    """Return what a pass depends on beside the model, None where something else has a hand in it."""
    if table.names or table.classes or table.functions or type(x) is not Tensor or not x.numel():
        return None
    if any(type(layer) not in OF_THE_ENGINE for layer in table.kinds.values()):
        return None
    if x.device.type not in ("cpu", "cuda") or x.layout != torch.strided or not x.is_floating_point():
        return None
    if not only_our_modes() or is_watched(x) or saving_hooks() is not None or torch.is_anomaly_enabled():
        return None
    if torch._C._len_torch_dispatch_stack() or not torch._C._is_torch_function_enabled():
        return None
    layers = tuple(sorted((kind, type(layer).__name__) for kind, layer in table.kinds.items()))
    settings = (torch.get_num_threads(), is_exact(), has_vectors())
    return (x.shape, x.stride(), x.dtype, x.device, layers, settings)
