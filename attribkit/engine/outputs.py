"""Running a model and reading what scores are made of: its output, or a layer's."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from attribkit.engine.origin import mark_model_error
from attribkit.engine.walk import Walk
from attribkit.errors import ModelError


def observe(model: nn.Module, x: Tensor, layer: str | None, kwargs: dict[str, Any]) -> Any:
    """Run the model on ``x`` [B, C, H, W] and return its output, or the `Capture` of a layer's.

    Raises
    ------
    UnknownNameError
        The forward pass does not call ``layer``.
    Exception
        Whatever the model raises, marked with ``attribkit_origin = "model forward"``.
    """
    if layer is not None:
        walk = Walk(model, layers=[layer], stop=True)
        walk.run(x.clone(), **kwargs)  # a model may begin with an in-place operation
        return walk.catch(layer)
    try:
        return model(x.clone(), **kwargs)
    except Exception as error:
        mark_model_error(error, model, "")
        raise


def class_scores(output: Any) -> Tensor:
    """Return the class scores [N, K] in a model's output.

    Parameters
    ----------
    output
        A tensor [N, K], a tuple or list whose first element is one, or a dict or object with ``logits``.

    Raises
    ------
    ModelError
        The output holds no [N, K] scores; dense outputs take a callable target.
    """
    found = output
    if isinstance(found, dict):
        found = found.get("logits")
        if found is None:
            raise ModelError(
                f"the model's output is a dict with keys {sorted(map(str, output))} and no 'logits': "
                "give a callable target (outputs -> scores [N])"
            )
    elif not isinstance(found, Tensor) and hasattr(found, "logits"):
        found = found.logits
    elif isinstance(found, (tuple, list)):
        if not found:
            raise ModelError("the model's output is empty")
        found = found[0]
    if not isinstance(found, Tensor):
        raise ModelError(
            f"the model's output is a {type(output).__name__} without class scores: give a callable target"
        )
    if found.ndim != 2:
        raise ModelError(
            f"the model's output has shape {tuple(found.shape)}, not [N, classes]: "
            "give a callable target (outputs -> scores [N])"
        )
    if not found.shape[1] or not found.is_floating_point():
        raise ModelError(
            f"the model's output, {tuple(found.shape)} of {found.dtype}, holds no class scores, floats for one class "
            "or more: give a callable target (outputs -> scores [N])"
        )
    return found
