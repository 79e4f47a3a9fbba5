"""Programs kept between calls: who explains one image after the other pays for one recording.

A program is used again only for the model as it was: its parts, flags, plain attributes and every element of its
tensors are compared, and a result with the model's own on every call besides. What code of the user's own reads beside
these cannot be known, so that only models without such code are kept: modules of known libraries, and no hooks.
"""

from __future__ import annotations

import threading
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from attribkit.engine.fingerprint import fingerprint
from attribkit.engine.incremental.program import Program
from attribkit.engine.known import is_known

#: Of how many models programs are kept, one each; they hold copies of the weights.
MODELS = 2

#: Up to about how many bytes of copies of weights a program is kept.
BYTES = 1 << 29

_lock = threading.Lock()
_programs: WeakKeyDictionary[nn.Module, tuple[Any, list[Any], Program]] = WeakKeyDictionary()


def kept(model: nn.Module, case: Any) -> Program | None:
    """Return the program of an earlier call where the model and the case (anything comparable) are what they were."""
    with _lock:
        found = _programs.get(model)
    if found is None or found[0] != case or found[1] != fingerprint(model):
        return None
    return found[2]


def keep(model: nn.Module, case: Any, program: Program) -> None:
    """Keep a program for the next call with this model, in place of an older one."""
    if not is_known(model.modules()) or program.plan.bytes() > BYTES:
        return
    entry = (case, fingerprint(model), program)
    with _lock:
        _programs.pop(model, None)
        for other in list(_programs)[: 1 - MODELS]:
            del _programs[other]
        _programs[model] = entry


def forget(model: nn.Module) -> None:
    """Let go of a model's program."""
    with _lock:
        _programs.pop(model, None)
