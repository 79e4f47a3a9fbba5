"""What a check is run on: a network, a batch of images and a target, small and printable."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from attribkit.targets import Unit
from attribkit.testing.net import Net

#: How the pixels of an image are drawn.
IMAGE_KINDS = ("normal", "levels", "positive")


def images(shape: tuple[int, ...], seed: int = 0, kind: str = "normal", dtype: torch.dtype = torch.float64) -> Tensor:
    """Return a batch of images drawn from a seed.

    Parameters
    ----------
    shape
        (N, C, H, W).
    seed
        Seed of a generator of their own.
    kind
        ``"normal"``; ``"levels"``: one of five levels, so that pools meet ties; ``"positive"``: from 0 to 1.
    dtype
        A float dtype.

    Returns
    -------
    Tensor [N, C, H, W]

    Raises
    ------
    ValueError
        There is no such kind.
    """
    generator = torch.Generator().manual_seed(seed)
    if kind == "levels":
        return torch.randint(-2, 3, shape, generator=generator).to(dtype)
    if kind == "positive":
        return torch.rand(shape, generator=generator, dtype=torch.float64).to(dtype)
    if kind != "normal":
        raise ValueError(f"kind must be one of {', '.join(IMAGE_KINDS)}, got {kind!r}")
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


@dataclass(frozen=True)
class Images:
    """A batch of images: how many, and how they are drawn."""

    count: int = 1
    seed: int = 0
    kind: str = "normal"


@dataclass(frozen=True)
class Case:
    """One example: everything a check needs, as data.

    Attributes
    ----------
    net : Net
        The network.
    writing : str
        How it is written.
    images : Images
        The batch.
    target : tuple of int or Unit
        Each sample's class, or a unit.
    value : int
        For a unit: the value of the network it belongs to.
    extra : tuple of int
        Whatever numbers the check draws further.
    """

    net: Net
    writing: str = "modules"
    images: Images = Images()
    target: tuple[int, ...] | Unit = (0,)
    value: int = 0
    extra: tuple[int, ...] = ()

    def model(self, dtype: torch.dtype = torch.float64) -> nn.Module:
        """Return the network as a module."""
        return self.net.build(self.writing, dtype)

    def inputs(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """Return the images [N, C, H, W]."""
        return images((self.images.count, *self.net.shape), self.images.seed, self.images.kind, dtype)

    def given_target(self) -> Any:
        """Return the target as a caller gives it: a LongTensor [N] or a `Unit`."""
        return self.target if isinstance(self.target, Unit) else torch.tensor(self.target)

    def arguments(self) -> tuple[nn.Module, Tensor, Any]:
        """Return model, inputs and target, made anew."""
        return self.model(), self.inputs(), self.given_target()

    def written(self, writing: str) -> Case:
        """Return the same case in another writing."""
        return replace(self, writing=writing)

    def code(self) -> str:
        """Return runnable Python code that makes ``model``, ``inputs`` and ``target``."""
        shape = (self.images.count, *self.net.shape)
        how = "" if self.images.kind == "normal" else f", kind={self.images.kind!r}"
        lines = ["import attribkit as ak", "from attribkit.testing import images, seed_weights"]
        if isinstance(self.target, Unit):
            unit = self.target
            layout = f", {unit.layout!r}" if unit.layout else ""
            target = f"ak.Unit({unit.layer!r}, {unit.channel}, {unit.position!r}{layout})"
        else:
            lines.pop(0)
            target = f"torch.tensor({list(self.target)})"
        head = self.net.source(self.writing)
        return (
            f"{head}\n\n" + "\n".join(lines) + f"\n\nmodel = seed_weights(Network().double(), {self.net.seed}).eval()\n"
            f"inputs = images({shape}, seed={self.images.seed}{how})\n"
            f"target = {target}\n"
        )
