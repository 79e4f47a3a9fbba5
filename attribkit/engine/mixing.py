"""Whether a model makes one sample's scores of other samples of the batch too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from attribkit.engine.incremental.errors import LooksAtValues, NotReplayable, is_torchs_own
from attribkit.engine.incremental.record import record

#: How far the first row may be from itself in another batch, as a share of the largest value returned.
TOLERANCE = {torch.float32: 4e-5, torch.float64: 1e-10}


def mixes(forward: Callable[[Tensor], Any], x: Tensor, other: Tensor) -> bool:
    """Tell whether a model's first row depends on the others, or may do so.

    Parameters
    ----------
    forward
        Runs the model on a batch and returns what it returns.
    x, other
        Two batches [N, C, H, W] and [M, C, H, W] whose first rows are the same and whose others are not. What the
        model raises for the first comes out; where it raises for the other whenever it gets it, it does not take
        every batch.

    Returns
    -------
    bool
        True also where the model looks at values made of the batch, which may decide otherwise for other rows, and
        where it cannot be watched.
    """
    returned: list[Any] = []

    def run(rows: Tensor) -> Any:
        returned.append(forward(rows))
        return returned[-1]

    try:
        record(run, x.clone())
    except LooksAtValues:
        return True
    except Exception as error:
        if not isinstance(error, NotReplayable) and (returned or not is_torchs_own(error)):
            raise
        if not returned:  # it has failed for being watched, if it does not fail now
            run(x.clone())
            return True
    if _refused(run, other):
        return True
    alone, beside = map(_rows, returned)
    return len(alone) != len(beside) or not all(map(_same_first_row, alone, beside))


def _refused(run: Callable[[Tensor], Any], rows: Tensor) -> bool:
    """Run a batch; tell whether the model raises whenever it gets it, and raise what it raises only once."""
    try:
        run(rows.clone())
    except Exception:
        try:
            run(rows.clone())
        except Exception:
            return True
        raise
    return False


def _rows(returned: Any) -> list[Tensor]:
    return [leaf.detach() for leaf in tree_leaves(returned) if isinstance(leaf, Tensor) and leaf.ndim]


def _same_first_row(a: Tensor, b: Tensor) -> bool:
    if a.shape[1:] != b.shape[1:] or a.dtype != b.dtype or not len(a) or not len(b):
        return False
    if not a.dtype.is_floating_point or not a[0].numel():
        return True  # labels, places: what they were made of is among what is compared, or nobody takes it for scores
    tolerance = TOLERANCE.get(a.dtype, 64 * torch.finfo(a.dtype).eps)
    largest = a.nan_to_num(0, 0, 0).abs().amax().item()
    return torch.allclose(a[0], b[0], rtol=0, atol=tolerance * largest, equal_nan=True)
