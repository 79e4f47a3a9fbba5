"""Convolutions that come before maps that lie pixel by pixel.

Where such maps begin, the first of them is laid out anew. If it comes from a convolution, through norms and rectifiers
alone, that convolution's input may be laid out anew instead, which is often much smaller: three channels of an image in
place of thirty-two. Which convolution comes before is known only when the maps begin, so one pass tells the next.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.weak import TensorWeakRef

from attribkit.engine.lean.rectifiers import PiecewiseLinear
from attribkit.engine.lean.step import Step
from attribkit.engine.lean.weighted import BatchNorm

#: A convolution, by the address of its weights and the size of its input.
Place = tuple[int, torch.Size]

#: Of how many convolutions of a model it is known that they come before such maps.
MOST = 64


class Leads:
    """Follows maps through one forward pass, from convolutions to where maps that lie pixel by pixel begin.

    Parameters
    ----------
    known
        The convolutions known to come before such maps; what this pass finds is added.

    Attributes
    ----------
    any_in_vain : bool
        Whether one of them has turned out not to, or other functions to want its map, too.
    """

    def __init__(self, known: set[Place]) -> None:
        self.any_in_vain = False
        self._known = known
        self._begun: Place | None = None
        self._maps: dict[int, tuple[TensorWeakRef, Place]] = {}

    def begins(self, x: Tensor, weight: Tensor) -> bool:
        """Follow the output of a convolution that is about to run; tell whether it is known to come before such maps.

        Parameters
        ----------
        x, weight
            Its input and its weights.
        """
        self._begun = weight.data_ptr(), x.shape
        return self._begun in self._known

    def follow(self, step: Step, x: Tensor, output: Tensor) -> None:
        """Follow the output of a step: of the convolution, or what is made of a map on its way."""
        place = self._begun
        if place is None and self._maps and isinstance(step, (BatchNorm, PiecewiseLinear)):
            place = self._place(x)
        if place is not None:
            self._maps[id(output)] = TensorWeakRef(output), place
        self._begun = None

    def arrives(self, tensor: Tensor) -> None:
        """Note that such maps begin with a tensor."""
        place = self._place(tensor)
        if place is not None and len(self._known) < MOST:
            self._known.add(place)

    def ends(self, tensor: Tensor) -> None:
        """Note that a map has been laid out as torch would have; if it is on its way, that way was in vain."""
        place = self._place(tensor)
        if place in self._known:
            self._known.discard(place)
            self.any_in_vain = True

    def _place(self, tensor: Tensor) -> Place | None:
        ref, place = self._maps.get(id(tensor), (None, None))
        return place if ref is not None and ref() is tensor else None
