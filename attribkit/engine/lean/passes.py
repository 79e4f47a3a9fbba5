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
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from attribkit.engine.fingerprint import fingerprint
from attribkit.engine.intercept import only_our_modes
from attribkit.engine.known import is_compiled, is_known
from attribkit.engine.layers import GatedRectify, PassThrough, Rectify, Unpool
from attribkit.engine.lean.recorder import Recorder
from attribkit.engine.lean.replay import Replay
from attribkit.engine.lean.shortcuts import has_vectors, is_exact
from attribkit.engine.lean.watched import is_watched, saving_hooks

if TYPE_CHECKING:
    from attribkit.engine.table import Table
    from attribkit.engine.walk import Walk

#: Of how many models passes are kept, and of how many sizes of inputs and methods of each.
MODELS, CASES = 4, 8

#: Inverse layers that keep nothing and do the same whenever they are asked.
OURS = (Rectify, GatedRectify, Unpool, PassThrough)

_lock = threading.Lock()
_passes: WeakKeyDictionary[nn.Module, OrderedDict[Any, _Known]] = WeakKeyDictionary()


@dataclass
class _Known:
    """What is known of a model's passes on inputs of a size."""

    failed: bool = False
    fingerprint: Any = None
    replay: Replay | None = None


class Noting:
    """Has a pass noted, and keeps what has been noted.

    Parameters
    ----------
    model
        The model.
    known
        Where to keep it.

    Attributes
    ----------
    recorder : Recorder
        What notes.
    """

    def __init__(self, model: nn.Module, known: _Known) -> None:
        self.recorder = Recorder((*model.parameters(), *model.buffers()))
        self._known = known
        modules = list(model.modules())
        self.recorder.failed = not is_known(modules) or any(map(is_compiled, modules))
        self._before = [] if self.recorder.failed else fingerprint(model, values=False)

    def give_up(self) -> None:
        """Keep that the pass cannot be made again."""
        self._known.failed, self._known.replay = True, None

    def end(self, walk: Walk, output: Any) -> None:
        """Keep the pass, or that it cannot be made again."""
        if walk.lean is None or walk.lean.pixels.in_vain:
            return  # the next one is to go otherwise
        known, replay = self._known, None
        if walk.complete and walk.plain_graph and not walk.wanted and not walk.splicer.attached:
            replay = self.recorder.made(output, walk.sites, walk.rewritten)
        # a forward pass that changes its model is another one each time
        if replay is not None and self._before == fingerprint(walk.model, values=False):
            known.replay, known.fingerprint = replay, self._before
        else:
            self.give_up()


def forget(model: nn.Module) -> None:
    """Let go of a model's passes."""
    with _lock:
        _passes.pop(model, None)


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
    with _lock:
        cases = _passes.get(model)
        known = None if cases is None else cases.get(case)
    if known is not None and known.failed:
        return None
    if known is not None and known.replay is None:
        return Noting(model, known)
    if known is not None and known.fingerprint == fingerprint(model, values=False):
        return known.replay
    _keep(model, case, _Known())
    return None


def _keep(model: nn.Module, case: Any, known: _Known) -> None:
    with _lock:
        cases = _passes.pop(model, None) or OrderedDict()
        cases.pop(case, None)
        cases[case] = known
        while len(cases) > CASES:
            cases.popitem(last=False)
        for other in list(_passes)[: 1 - MODELS]:
            del _passes[other]
        _passes[model] = cases


def _case(x: Tensor, table: Table) -> Any:
    """Return what a pass depends on beside the model, None where something else has a hand in it."""
    if table.names or table.classes or table.functions or type(x) is not Tensor or not x.numel():
        return None
    if any(type(layer) not in OURS for layer in table.kinds.values()):
        return None
    if x.device.type not in ("cpu", "cuda") or x.layout != torch.strided or not x.is_floating_point():
        return None
    if not only_our_modes() or is_watched(x) or saving_hooks() is not None or torch.is_anomaly_enabled():
        return None
    if torch._C._len_torch_dispatch_stack():
        return None
    layers = tuple(sorted((kind, type(layer).__name__) for kind, layer in table.kinds.items()))
    settings = (torch.get_num_threads(), is_exact(), has_vectors())
    return (x.shape, x.stride(), x.dtype, x.device, layers, settings)
