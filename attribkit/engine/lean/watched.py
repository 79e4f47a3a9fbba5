"""Whether somebody else looks on at what becomes of a tensor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from attribkit.engine.splice import is_transformed


def saving_hooks() -> Any:
    """Return the hooks on what autograd saves that the caller or the model has set, None where there are none."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True)


def is_watched(x: Tensor) -> bool:
    """Tell whether something else than autograd's ordinary way back has an interest in what happens to a tensor."""
    return (
        is_transformed()
        or forward_ad._current_level >= 0
        or torch.is_autocast_enabled(x.device.type)
        or torch.compiler.is_compiling()
    )
