"""Where the features are in a layer's output, read off the operations that made it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

#: The layouts a unit can be addressed in; C is the feature dimension.
LAYOUTS = ("NCHW", "NHWC", "NTC", "NC")

_CHANNELS_FIRST = frozenset({"conv", "batch_norm", "max_pool", "avg_pool", "contrast_norm"})
_PERMUTES = frozenset({torch.permute, torch.Tensor.permute})
_TRANSPOSES = frozenset(
    {
        torch.transpose,
        torch.Tensor.transpose,
        torch.swapaxes,
        torch.Tensor.swapaxes,
        torch.swapdims,
        torch.Tensor.swapdims,
    }
)

#: Functions that reorder dimensions.
MOVES = _PERMUTES | _TRANSPOSES


class Layouts:
    """Follows one forward pass and says in which layout the tensors of the moment are.

    Convolutions, batch norms and pools are channels-first; linear layers and layer norms over the last dimension are
    channels-last; permutations turn one into the other; everything else keeps what it finds.

    Parameters
    ----------
    model
        Its ``output_fmt`` (timm), where it has one, decides for the stages its ``feature_info`` names.
    """

    def __init__(self, model: nn.Module) -> None:
        self.channels_last = False
        fmt = getattr(model, "output_fmt", None)
        fmt = str(getattr(fmt, "value", fmt)) if fmt is not None else None
        self._stage_format = fmt if fmt in LAYOUTS else None
        self._stages = stage_names(model) if self._stage_format else frozenset()

    def after(self, kind: str, name: str, args: tuple[Any, ...], value: Tensor | None) -> None:
        """Note an operation that fixes where its output's features are."""
        if kind in _CHANNELS_FIRST or name in ("group_norm", "instance_norm"):
            self.channels_last = False
        elif value is not None and value.ndim >= 3:
            over_last = name in ("layer_norm", "rms_norm") and len(args) > 1 and _is_single(args[1])
            if kind == "linear" or over_last:
                self.channels_last = True

    def moved(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note a permutation of dimensions."""
        if function in _PERMUTES:
            dims = args[1] if len(args) == 2 and not isinstance(args[1], int) else args[1:] or kwargs.get("dims", ())
            dims = tuple(d % len(dims) for d in dims) if dims else ()
            if dims == (0, 2, 3, 1):
                self.channels_last = True
            elif dims == (0, 3, 1, 2):
                self.channels_last = False
        elif function in _TRANSPOSES and isinstance(args[0], Tensor) and args[0].ndim == 3:
            dims = {d % 3 for d in (*args[1:], *kwargs.values()) if isinstance(d, int)}
            if dims == {1, 2}:
                self.channels_last = not self.channels_last

    def of(self, value: Tensor | None, name: str | None = None) -> str | None:
        """Return the layout of an output, None where it has no feature dimension that we know of."""
        if value is None or value.ndim not in (2, 3, 4):
            return None
        if value.ndim == 2:
            return "NC"
        if value.ndim == 3:
            return "NTC"
        if name is not None and name in self._stages:
            return self._stage_format
        return "NHWC" if self.channels_last else "NCHW"


def stage_names(model: nn.Module) -> frozenset[str]:
    """Return the module paths that timm's ``feature_info`` names, empty where the model has none."""
    info = getattr(model, "feature_info", None)
    if info is None:
        return frozenset()
    try:
        rows = info.info if hasattr(info, "info") else list(info)
        return frozenset(str(row["module"]) for row in rows if isinstance(row, dict) and row.get("module"))
    except (TypeError, KeyError, AttributeError):
        return frozenset()


def _is_single(shape: Any) -> bool:
    return isinstance(shape, int) or (hasattr(shape, "__len__") and len(shape) == 1)
