"""A module call while it is under way, and what is caught at one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

    from attribkit.engine.inverse import InverseLayer
    from attribkit.engine.ops import ModuleKind
    from attribkit.engine.sites import Site
    from attribkit.engine.splice import Splice


@dataclass(slots=True)
class Frame:
    """A module call under way."""

    module: nn.Module
    path: str
    name: str
    known: ModuleKind | None
    whole: bool
    claimable: bool
    layer: InverseLayer | None = None
    pending: Splice | None = None
    site: Site | None = None


@dataclass
class Capture:
    """What a walk caught at the layer asked for.

    Attributes
    ----------
    value : Tensor
        The layer's output the moment it returned.
    name : str
        The layer.
    layout : str or None
        Where its features are.
    image : tuple of int, or None
        Height and width of the model's input.
    """

    value: Tensor
    name: str
    layout: str | None
    image: tuple[int, ...] | None = None
