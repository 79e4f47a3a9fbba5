"""The methods: which rule goes to which operation."""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from typing import ClassVar

import torch
from torch.utils._pytree import tree_flatten, tree_unflatten

import attribkit as ak
from attribkit.errors import InputError
from attribkit_lrp import _METHODS
from attribkit_lrp.affine import BatchNorms
from attribkit_lrp.rules import AlphaBeta, Box, Epsilon, Flat, Gamma, Norm, Pass, PassBatchNorm, ZPlus

_OWN_RANGE = "low and high default to the range of all of a call's inputs; given, they are the same for every batch"


def table(conv, linear, epsilon=1e-6):
    """Return the table all composites share, with the rules for convolutions and linear layers put in.

    Whatever is not named keeps its ordinary derivative: max pools, concatenations, products, layer norms, attention.
    """
    norm = Norm(epsilon)
    return {
        "conv": conv,
        "linear": linear,
        "batch_norm": PassBatchNorm(),
        "rectifier": Pass(),
        "gate": Pass(),
        "sum": norm,
        "avg_pool": norm,
        "mean": norm,
    }


class Composite(ak.InverseMethod):
    """LRP by a table of rules. The relevance starts as the class score, or as the unit's activation.

    The relevance of a callable target starts as y·∂f/∂y at the model's output y. Subclasses set ``inverse_layers`` and
    may define ``attribute`` to give them options.

    Attributes
    ----------
    first_kinds : tuple of str
        Op kinds among which the first site of the forward pass gets a rule of its own.
    """

    tags = frozenset({"inverse", "signed", "deterministic", "linear_in_seed"})
    unit_signal = "activation"
    first_kinds: ClassVar[tuple[str, ...]] = ()

    def attribute(self, model, inputs, target, **options):
        """Return the relevance [N, C, H, W]."""
        return self.propagate(model, inputs, target, self.inverse_layers)

    def propagate(self, model, inputs, target, rules, first=None):
        """Carry the relevance back through a table; ``first`` is the rule of the first site of ``first_kinds``."""
        if first is not None:
            name = next((s.name for s in ak.inspect(model, inputs[:1]).sites if s.kind in self.first_kinds), None)
            rules = {**rules, re.compile(re.escape(name)): first} if name is not None else rules
        batch_norms = BatchNorms()
        own = {}
        for key, rule in rules.items():
            own[key] = rule = copy.copy(rule)  # the batch norms of this call are no other call's business
            if hasattr(rule, "batch_norms"):
                rule.batch_norms = batch_norms
        walk = _Walk()
        walk.inverse_layers = own
        return walk.attribute(model, inputs, _start(target))


class _Walk(ak.InverseMethod):
    """One call's table."""

    unit_signal = "activation"


def _start(target):
    """Return the target with its signal starting as the score in place of 1."""
    described = target.describe()
    if isinstance(described, str):  # a callable
        return replace(target, function=_weighted(target.function))
    return target if isinstance(described, ak.Unit) else _FromScore(target)


class _FromScore:
    """A class target whose signal starts as its score."""

    def __init__(self, target):
        self._target = target

    def __getattr__(self, name):
        return getattr(self._target, name)

    def start(self, observed, index, unit_signal):
        """Return the scores and, as the signal, their values."""
        scores, _ = self._target.start(observed, index, unit_signal)
        return scores, scores.detach()


def _weighted(function):
    """Return a function of the model's output y whose derivative is y·∂f/∂y."""

    def weighted(output):
        leaves, spec = tree_flatten(output)
        places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()]
        with torch.enable_grad():
            own = list(leaves)
            for i in places:
                own[i] = leaves[i].detach().requires_grad_()
            scores = function(tree_unflatten(own, spec))
        grads = torch.autograd.grad(scores.sum(), [own[i] for i in places], allow_unused=True)
        pairs = [(leaves[i], own[i].detach() * grad) for i, grad in zip(places, grads, strict=True) if grad is not None]
        return sum((value * weight).reshape(len(scores), -1).sum(1) for value, weight in pairs)

    return weighted


class LrpEpsilon(Composite):
    """The epsilon rule at every convolution and linear layer (Bach et al. 2015, eq. 58)."""

    name = "lrp_epsilon"
    summary, source = _METHODS[name][1:]
    inverse_layers = table(Epsilon(), Epsilon())

    def attribute(self, model, inputs, target, *, epsilon=1e-6):
        """Return the relevance; ``epsilon`` moves the denominators of convolutions and linear layers from zero."""
        return self.propagate(model, inputs, target, table(Epsilon(epsilon), Epsilon(epsilon)))


class LrpEpsilonPlusFlat(Composite):
    """Flat for the first convolution or linear layer, z⁺ for the other convolutions, ε for the other linear layers.

    Lapuschkin et al. 2019; Kohlbrenner et al. 2020.
    """

    name = "lrp_epsilon_plus_flat"
    summary, source = _METHODS[name][1:]
    inverse_layers = table(ZPlus(), Epsilon())
    first_kinds = ("conv", "linear")

    def attribute(self, model, inputs, target, *, epsilon=1e-6):
        """Return the relevance; ``epsilon`` is that of the linear layers."""
        return self.propagate(model, inputs, target, table(ZPlus(), Epsilon(epsilon)), Flat())


class LrpEpsilonGammaBox(Composite):
    """The box rule for the first convolution, γ for the others, ε for linear layers (Montavon et al. 2019)."""

    name = "lrp_epsilon_gamma_box"
    summary, source = _METHODS[name][1:]
    inverse_layers = table(Gamma(), Epsilon())
    first_kinds = ("conv",)
    expected_failures: ClassVar[dict[str, str]] = dict.fromkeys(
        ("check_batch_independence", "check_front_door", "check_current_input"), _OWN_RANGE
    )

    def attribute(self, model, inputs, target, *, low=None, high=None, gamma=0.25, epsilon=1e-6):
        """Return the relevance and the bounds that were used.

        Parameters
        ----------
        model, inputs, target
            As for every method.
        low, high
            The least and the largest value a pixel can have: a number, or a tensor that expands to the inputs, such as
            [C, 1, 1]; default: of this call's inputs.
        gamma
            How much the favoured contributions grow.
        epsilon
            That of the linear layers.

        Returns
        -------
        values : Tensor [N, C, H, W]
        extras : dict
            ``low`` and ``high``, each [N, C].
        """
        bounds = {
            "low": inputs.detach().amin() if low is None else low,
            "high": inputs.detach().amax() if high is None else high,
        }
        for name, bound in bounds.items():
            bounds[name] = bound = torch.as_tensor(bound, dtype=inputs.dtype, device=inputs.device)
            if not _expands(bound.shape, inputs.shape):
                shapes = f"{tuple(bound.shape)}, which does not expand to the inputs' {tuple(inputs.shape)}"
                raise InputError(f"{self.name} {name} has shape {shapes}")
        values = self.propagate(model, inputs, target, table(Gamma(gamma), Epsilon(epsilon)), Box(**bounds))
        shown = {"low": torch.Tensor.amin, "high": torch.Tensor.amax}
        return values, {name: shown[name](bound.expand_as(inputs), (2, 3)) for name, bound in bounds.items()}


def _expands(shape, to):
    """Tell whether a tensor of one shape expands to another."""
    return len(shape) <= len(to) and all(a in (1, b) for a, b in zip(reversed(shape), reversed(to), strict=False))


class LrpEpsilonAlpha2Beta1(Composite):
    """α = 2, β = 1 for convolutions, ε for linear layers (Bach et al. 2015, eq. 60)."""

    name = "lrp_epsilon_alpha2_beta1"
    summary, source = _METHODS[name][1:]
    inverse_layers = table(AlphaBeta(), Epsilon())

    def attribute(self, model, inputs, target, *, epsilon=1e-6):
        """Return the relevance; ``epsilon`` is that of the linear layers."""
        return self.propagate(model, inputs, target, table(AlphaBeta(), Epsilon(epsilon)))
