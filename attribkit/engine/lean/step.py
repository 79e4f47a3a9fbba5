"""A step of the way back: one operation and what is kept of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from attribkit.engine.inverse import InverseLayer
    from attribkit.engine.splice import FunctionCall


class Step:
    """One call of a known operation, on its way up and on its way back.

    Attributes
    ----------
    kept : tuple of Tensor
        What the way back needs, set by `run` at the latest and then handed to autograd.
    in_place : bool
        Whether the call changes its input: it is then made as it is, without `run`.
    by_pixels : bool
        Whether its input and output lie with channels last although torch would have laid them out otherwise.
    """

    kept: tuple[Tensor, ...] = ()
    in_place = False
    by_pixels = False

    def run(self, call: FunctionCall) -> Tensor:
        """Run the operation as it was called and return its output."""
        output: Tensor = call.run()
        return output

    def keep(self, output: Tensor) -> None:
        """Keep what the ordinary derivative takes from the output; not called where nobody will ask for it."""

    def back(self, signal: Tensor, kept: tuple[Tensor, ...], alone: bool = False) -> Tensor:
        """Carry a signal back by the ordinary derivative; one that is alone may be overwritten."""
        raise NotImplementedError

    def carried(
        self, layer: InverseLayer, signal: Tensor, kept: tuple[Tensor, ...], alone: bool = False
    ) -> Tensor | None:
        """Do in one pass what a known inverse layer does to a signal; None where its `carry` is to do it."""
        return None

    def switches(self, kept: tuple[Tensor, ...]) -> Tensor | None:
        """Return a max pool's switches, None for all else."""
        return None


def is_fixed(tensor: Any, x: Tensor) -> bool:
    """Tell whether a parameter, None included, is a plain tensor of the input's kind that nothing was computed for."""
    return tensor is None or (
        type(tensor) in (Tensor, nn.Parameter, nn.Buffer)
        and tensor.is_leaf
        and tensor.dtype == x.dtype
        and tensor.device == x.device
        and tensor.layout == torch.strided
    )


def named(call: FunctionCall, *names: str) -> dict[str, Any] | None:
    """Return a call's arguments by name; None where it was called in a way that does not name all of these."""
    bound = call.bound
    for name in names:
        if name not in bound:
            return None
    return bound


def are_plain(*settings: Any) -> bool:
    """Tell whether settings are Python's integers, or tuples or lists of them; torch takes numpy's and tensors, too."""
    for setting in settings:
        for value in setting if isinstance(setting, (tuple, list)) else (setting,):
            if not isinstance(value, int):
                return False
    return True


def many(value: int | tuple[int, ...] | list[int], dims: int) -> list[int]:
    """Return a setting for each dimension."""
    return [value] * dims if isinstance(value, int) else list(value) * (dims if len(value) == 1 else 1)


def windows(
    size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> list[int]:
    """Return how many windows of a convolution there are, by dimension."""
    settings = zip(size, kernel, stride, padding, dilation, strict=True)
    return [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in settings]
