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

#: Of how many convolutions of a model it is known; when there are more, the first are forgotten.
MOST = 64


class Leads:
    """Follows maps through one forward pass, from convolutions to where maps that lie pixel by pixel begin.

    Parameters
    ----------
    known
        Whether it has been worth it to begin at a convolution that comes before such maps: yes until it turns out that
        its map is wanted as torch lays it out, then never again. What this pass finds is added at its end.

    Attributes
    ----------
    any_in_vain : bool
        Whether it has turned out so in this pass.
    """

    def __init__(self, known: dict[Place, bool]) -> None:
        self.any_in_vain = False
        self._known = known
        self._found: list[Place] = []
        self._begun: Place | None = None
        self._maps: dict[int, tuple[TensorWeakRef, Place]] = {}

    def begins(self, x: Tensor, weight: Tensor) -> bool:
        """Follow the output of a convolution that is about to run; tell whether such maps are to begin with it.

        Parameters
        ----------
        x, weight
            Its input and its weights.
        """
        self._begun = weight.data_ptr(), x.shape
        return self._known.get(self._begun, False)

    def follow(self, step: Step, x: Tensor, output: Tensor) -> None:
        """Follow the output of a step: of the convolution, or what is made of a map on its way."""
        place = self._begun
        if place is None and self._maps and isinstance(step, (BatchNorm, PiecewiseLinear)):
            place = self._place(x)
        if place is not None:
            self._maps[id(output)] = TensorWeakRef(output), place
        self._begun = None

    def arrives(self, tensor: Tensor) -> None:
        """Note that such maps begin with a tensor, or go on with it."""
        place = self._place(tensor)
        if place is not None:
            self._found.append(place)

    def ends(self, tensor: Tensor) -> bool:
        """Tell whether a map that has to be laid out as torch would have is on its way, which was in vain then."""
        place = self._place(tensor)
        if place is None:
            return False
        del self._maps[id(tensor)]
        self._known[place] = False
        self.any_in_vain = True
        return True

    def close(self) -> None:
        """Hand on what has been found."""
        for place in self._found:
            self._known.setdefault(place, True)
        while len(self._known) > MOST:
            del self._known[next(iter(self._known))]

    def _place(self, tensor: Tensor) -> Place | None:
        ref, place = self._maps.get(id(tensor), (None, None))
        return place if ref is not None and ref() is tensor else None
