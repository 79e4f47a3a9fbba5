"""Whose an exception is: what a model's forward raises is marked as the model's own."""

from __future__ import annotations

from torch import nn


def mark_model_error(error: Exception, model: nn.Module, where: str) -> None:
    """Mark an exception as the model's own, so that messages can say whose it is; its type stays as it is."""
    if hasattr(error, "attribkit_origin"):
        return
    try:
        error.attribkit_origin = "model forward"  # type: ignore[attr-defined]
    except (AttributeError, TypeError):
        return
    place = f" (in {where!r})" if where else ""
    note = f"raised by the model's forward: {type(model).__name__}{place}"
    error.__notes__ = [*getattr(error, "__notes__", []), note]  # type: ignore[attr-defined]
