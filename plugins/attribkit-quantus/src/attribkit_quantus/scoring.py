"""Asking a network for its classes' scores."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from attribkit.errors import ModelError


def class_scores(output: Any) -> Tensor:
    """Return the class scores [N, K] in a model's output: it, its first element, or its ``logits``.

    Raises
    ------
    ModelError
        It holds none, or some that are not numbers.
    """
    found = output
    if isinstance(output, dict):
        found = output.get("logits")
    elif not isinstance(output, Tensor) and hasattr(output, "logits"):
        found = output.logits
    elif isinstance(output, tuple | list) and output:
        found = output[0]
    if not isinstance(found, Tensor) or found.ndim != 2:
        what = f"a tensor {tuple(found.shape)}" if isinstance(found, Tensor) else f"a {type(output).__name__}"
        raise ModelError(
            f"the model's output, {what}, holds no class scores [N, classes]: only a classifier is evaluated"
        )
    return found


@torch.no_grad()
def scores(model: nn.Module, inputs: Tensor, batch_size: int) -> Tensor:
    """Return the class scores of inputs [N, C, H, W] as float32 [N, K]; `ModelError` where they are no numbers."""
    found = torch.cat([class_scores(model(part)).float() for part in torch.split(inputs, batch_size)])
    if not bool(found.isfinite().all()):
        raise ModelError("the model's class scores hold NaN or infinite values")
    return found
