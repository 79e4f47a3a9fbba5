"""The rules of layer-wise relevance propagation, each an inverse layer.

Notation: x is the operation's input, z = W·x + b its output, R the relevance at the output; a⁺ and a⁻ are the
positive and negative parts; ``stabilised(z)`` is z moved away from zero by ε. Every rule is linear in R. The
conventions (what of the bias stays in the denominators, how negative inputs are treated) are those of Zennit 0.5.
"""

from __future__ import annotations

import torch

import attribkit as ak
from attribkit.errors import InputError
from attribkit_lrp.affine import Affine, scale_and_shift


def stabilised(z, epsilon):
    """Return z + ε·sign(z), the sign of zero being +1."""
    return z + epsilon * torch.where(z < 0, -1.0, 1.0).to(z)


def _positive(tensor):
    return None if tensor is None else tensor.clamp(min=0)


def _negative(tensor):
    return None if tensor is None else tensor.clamp(max=0)


class Rule(ak.InverseLayer):
    """A rule for convolutions and linear layers; a subclass defines ``relevance(R, x, affine)``.

    Parameters
    ----------
    epsilon
        What moves denominators away from zero.

    Attributes
    ----------
    batch_norms : BatchNorms or None
        Shared by the rules of one call, so that batch norms are merged; None: they are not.
    """

    needs = frozenset({"input", "output"})
    signal_only = True
    batch_norms = None

    def __init__(self, epsilon=1e-6):
        self.epsilon = epsilon

    def carry(self, signal, site):
        """Return the relevance at the input."""
        return self.relevance(signal, site.input, Affine(site, self.batch_norms))

    def relevance(self, signal, x, affine):
        """Return the relevance at the input, given x and the operation."""
        raise NotImplementedError(f"{type(self).__name__} does not define relevance(signal, x, affine)")

    def share(self, signal, z):
        """Return R / stabilised(z)."""
        return signal / stabilised(z, self.epsilon)


class Epsilon(Rule):
    """x · Wᵀ(R / z) (Bach et al. 2015, eq. 58)."""

    def relevance(self, signal, x, affine):
        """Return x · Wᵀ(R / z)."""
        return x * affine.back(affine.weight, self.share(signal, affine.z))


class ZPlus(Rule):
    """Positive contributions only: those of (x⁺, W⁺) and (x⁻, W⁻) (Montavon et al. 2017, eq. 7)."""

    def relevance(self, signal, x, affine):
        """Return x⁺·W⁺ᵀs + x⁻·W⁻ᵀs with s = R / (W⁺x⁺ + b⁺ + W⁻x⁻)."""
        return _one_sign(self, signal, x, affine, _positive, _negative)


def _one_sign(rule, signal, x, affine, same, other):
    """Share R among the contributions of x⁺ with one part of the weights and of x⁻ with the other part."""
    up, down = _positive(x), _negative(x)
    for_up, for_down = same(affine.weight), other(affine.weight)
    z = affine.forward(up, for_up, same(affine.bias)) + affine.forward(down, for_down)
    shared = rule.share(signal, z)
    return up * affine.back(for_up, shared) + down * affine.back(for_down, shared)


class AlphaBeta(Rule):
    """α times the positive contributions, minus β times the negative ones (Bach et al. 2015, eq. 60), α − β = 1."""

    def __init__(self, alpha=2.0, beta=1.0, epsilon=1e-6):
        super().__init__(epsilon)
        if alpha < 0 or beta < 0 or alpha - beta != 1:
            raise InputError(f"alpha - beta must be 1 and neither negative, got {alpha} and {beta}")
        self.alpha, self.beta = alpha, beta

    def relevance(self, signal, x, affine):
        """Return the weighted shares of both signs."""
        found = self.alpha * _one_sign(self, signal, x, affine, _positive, _negative)
        return found - self.beta * _one_sign(self, signal, x, affine, _negative, _positive) if self.beta else found


class Gamma(Rule):
    """Weights with their part that agrees with z made 1 + γ times as large (Montavon et al. 2019, §10.2.3).

    Generalised to inputs and outputs of both signs as by Andéol et al. 2021: where z > 0 the positive contributions
    are favoured, where z < 0 the negative ones; where z = 0 nothing passes.
    """

    def __init__(self, gamma=0.25, epsilon=1e-6):
        super().__init__(epsilon)
        self.gamma = gamma

    def relevance(self, signal, x, affine):
        """Return the shares of places with z > 0 and of those with z < 0."""

        def favour(part):
            return lambda tensor: None if tensor is None else tensor + self.gamma * part(tensor)

        more, less = favour(_positive), favour(_negative)
        above = _one_sign(self, signal * (affine.z > 0), x, affine, more, less)
        return above + _one_sign(self, signal * (affine.z < 0), x, affine, less, more)


class WSquare(Rule):
    """In proportion to squared weights, whatever the input (Montavon et al. 2017, eq. 9)."""

    def relevance(self, signal, x, affine):
        """Return (W²)ᵀ(R / (W²·1 + b²))."""
        weight, bias = affine.weight**2, affine.bias**2 if affine.bias is not None else None
        return affine.back(weight, self.share(signal, affine.forward(torch.ones_like(x), weight, bias)))


class Flat(Rule):
    """Evenly over the receptive field (Lapuschkin et al. 2019)."""

    def relevance(self, signal, x, affine):
        """Return 1ᵀ(R / (1·1))."""
        weight = torch.ones_like(affine.weight)
        return affine.back(weight, self.share(signal, affine.forward(torch.ones_like(x), weight)))


class Box(Rule):
    """For inputs between ``low`` and ``high`` (zᴮ rule; Montavon et al. 2017, eq. 12)."""

    def __init__(self, low, high, epsilon=1e-6):
        super().__init__(epsilon)
        self.low, self.high = low, high

    def relevance(self, signal, x, affine):
        """Return x·Wᵀs − low·W⁺ᵀs − high·W⁻ᵀs with s = R / (z − z(low, W⁺, b⁺) − z(high, W⁻, b⁻))."""
        low, high = (
            torch.as_tensor(bound, dtype=x.dtype, device=x.device).expand_as(x) for bound in (self.low, self.high)
        )
        weight, up, down = affine.weight, _positive(affine.weight), _negative(affine.weight)
        z = affine.z - affine.forward(low, up, _positive(affine.bias))
        shared = self.share(signal, z - affine.forward(high, down, _negative(affine.bias)))
        return x * affine.back(weight, shared) - low * affine.back(up, shared) - high * affine.back(down, shared)


class Norm(ak.InverseLayer):
    """In proportion to what each input contributed to a sum or a mean: the epsilon rule without weights."""

    needs = frozenset({"input", "output"})

    def __init__(self, epsilon=1e-6):
        self.epsilon = epsilon

    def carry(self, signal, site):
        """Return x · ∂z/∂xᵀ(R / z) for each input."""
        back = site.plain(signal / stabilised(site.output, self.epsilon))
        parts = back if isinstance(back, tuple) else (back,)
        return tuple(None if part is None else x * part for x, part in zip(site.inputs, parts, strict=True))


class Pass(ak.InverseLayer):
    """Hands the relevance through an operation that works on each number by itself; elsewhere the derivative stays."""

    def carry(self, signal, site):
        """Return R."""
        # softmax and its like, which look along a dimension, and GLU, which halves one, are no such operations
        return site.plain(signal) if "dim" in site.params or signal.shape != site.input_shapes[0] else signal


class PassBatchNorm(ak.InverseLayer):
    """Hands the relevance through a batch norm; the convolution or linear layer that fed it is told what it did."""

    needs = frozenset({"input"})
    signal_only = True
    batch_norms = None

    def carry(self, signal, site):
        """Return R."""
        found = scale_and_shift(site.params)
        if found is not None and self.batch_norms is not None:
            self.batch_norms.put(site.input, *found)
        return signal
