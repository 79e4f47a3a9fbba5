"""The inverse layers of the default methods: each one short ``carry``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attribkit.engine.inverse import InverseLayer
from attribkit.errors import MethodError

if TYPE_CHECKING:
    from torch import Tensor

    from attribkit.engine.inverse import Signal, SiteCall


class Rectify(InverseLayer):
    """The deconvnet's rectifier: passes the positive part of the signal, whatever the forward pass did.

    Zeiler & Fergus 2014, §2.1 ("Rectification").
    """

    signal_only = True

    def carry(self, signal: Tensor, site: SiteCall) -> Signal:
        """Return max(R, 0)."""
        return signal.clamp(min=0)


class GatedRectify(InverseLayer):
    """Guided backpropagation's rectifier: the derivative of the positive part of the signal.

    Springenberg et al. 2015, §3.4 and Fig. 1.
    """

    def carry(self, signal: Tensor, site: SiteCall) -> Signal:
        """Return σ'(x)·max(R, 0)."""
        return site.plain(signal.clamp(min=0))


class Unpool(InverseLayer):
    """Max unpooling through the recorded switches; where windows overlap, contributions to one place add.

    Zeiler & Fergus 2014, §2.1 ("Unpooling"). The result is the pool's ordinary derivative.
    """

    signal_only = True
    ordinary = True

    def carry(self, signal: Tensor, site: SiteCall) -> Signal:
        """Return the signal put at its switches, zero elsewhere."""
        switches = site.switches
        if switches is None:
            raise MethodError(f"{self!r} is attached to {site.name!r}, a {site.kind} without switches")
        shape = site.input_shapes[0]
        spatial = site.spatial_dims
        empty = signal.new_zeros(shape).flatten(-spatial)
        unpooled = empty.scatter_add(-1, switches.flatten(-spatial), signal.flatten(-spatial))
        return unpooled.reshape(shape)


class PassThrough(InverseLayer):
    """Skips an operation that keeps the shape: the signal passes unchanged (the deconvnet's contrast normalisation)."""

    signal_only = True

    def carry(self, signal: Tensor, site: SiteCall) -> Signal:
        """Return the signal as it is."""
        return signal


#: All of these: none keeps anything between calls, and where a signal lies in memory makes no difference to them.
OF_THE_ENGINE = (Rectify, GatedRectify, Unpool, PassThrough)
