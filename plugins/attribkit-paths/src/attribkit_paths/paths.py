"""Methods along a path: the gradient's integral from a baseline to the image."""

from __future__ import annotations

import numpy as np
import torch

import attribkit as ak
from attribkit.errors import InputError
from attribkit_paths import _METHODS
from attribkit_paths.base import find, like, maps, whole

#: How many images go through the model at once.
ROWS = 32


def rule(name, steps):
    """Return where on the way from 0 to 1 to look, and the weight of each place, as lists of floats.

    Raises
    ------
    InputError
        There is no such rule.
    """
    grid = np.arange(steps)
    if name == "gauss_legendre":
        places, weights = np.polynomial.legendre.leggauss(steps)
        places, weights = (places + 1) / 2, weights / 2
    elif name == "riemann_trapezoid" and steps > 1:
        places, weights = grid / (steps - 1), np.full(steps, 1 / (steps - 1))
        weights[[0, -1]] /= 2
    elif name in ("riemann_left", "riemann_middle", "riemann_right"):
        places = (grid + {"riemann_left": 0, "riemann_middle": 0.5, "riemann_right": 1}[name]) / steps
        weights = np.full(steps, 1 / steps)
    else:
        known = "'gauss_legendre', 'riemann_left', 'riemann_middle', 'riemann_right' or 'riemann_trapezoid'"
        raise InputError(f"integrated_gradients rule must be {known} (of two steps or more), got {name!r}")
    return places.tolist(), weights.tolist()


class IntegratedGradients(ak.Method):
    """(x − x₀) · Σᵢ wᵢ ∂f/∂x (x₀ + αᵢ (x − x₀)) (Sundararajan et al. 2017, eq. 1 and 3).

    The convergence delta is what the map's sum exceeds f(x) − f(x₀) by; it vanishes as the steps grow.
    """

    name = "integrated_gradients"
    summary, source = _METHODS[name][1:]
    tags = frozenset({"signed", "deterministic", "linear_in_seed", "thread_safe"})

    def attribute(
        self, model, inputs, target, *, baseline=0.0, steps=50, rule="gauss_legendre", base="gradient", rows=ROWS
    ):
        """Return the map and how far it is from complete.

        Parameters
        ----------
        model, inputs, target
            As for every method.
        baseline
            Where the way begins: a number, or a tensor that expands to the inputs.
        steps
            How many gradients are taken.
        rule
            Where, and with what weights: ``"gauss_legendre"``, ``"riemann_left"``, ``"riemann_middle"``,
            ``"riemann_right"`` or ``"riemann_trapezoid"``.
        base
            The method in the place of the gradient: a name, such as ``"guided_backprop"``, a class or an instance.
        rows
            How many images go through the model at once: it bounds the memory.

        Returns
        -------
        values : Tensor [N, C, H, W]
        extras : dict
            ``convergence_delta`` [N].
        """
        x, start = inputs.detach(), like(f"{self.name} baseline", baseline, inputs)
        places, weights = _rule(rule, whole(f"{self.name} steps", steps, 1), x)
        way = x - start
        total = torch.zeros_like(x)
        method = find(base, self.name)

        def copy(sample, k):
            return start[sample] + places[k, None, None, None] * way[sample]

        for sample, k, found in maps(method, model, target, len(x), steps, copy, rows):
            total.index_add_(0, sample.to(x.device), weights[k, None, None, None] * found.detach())
        values = way * total
        with torch.no_grad():
            gain = target.scores(model, x) - target.scores(model, start.clone())
        return values, {"convergence_delta": values.flatten(1).sum(1) - gain}


def _rule(name, steps, x):
    return tuple(torch.tensor(numbers, dtype=x.dtype, device=x.device) for numbers in rule(name, steps))


class ExpectedGradients(ak.Method):
    """The mean over k of (x − bₖ) · ∂f/∂x (bₖ + αₖ (x − bₖ)), bₖ drawn from a background, αₖ evenly from 0 to 1.

    Erion et al. 2021, eq. 3. The draws are the same for every sample.
    """

    name = "expected_gradients"
    summary, source = _METHODS[name][1:]
    tags = frozenset({"signed", "deterministic", "linear_in_seed", "thread_safe"})

    def attribute(self, model, inputs, target, *, background=None, samples=50, seed=0, base="gradient", rows=ROWS):
        """Return the map and how far it is from complete.

        Parameters
        ----------
        model, inputs, target
            As for every method.
        background
            Images [B, C, H, W] to draw from; default: normal noise of mean 0 and deviation 1, which is how pixels of
            normalised photographs are spread.
        samples
            How many are drawn.
        seed
            What draws them and the places on the way.
        base, rows
            As for integrated gradients.

        Returns
        -------
        values : Tensor [N, C, H, W]
        extras : dict
            ``convergence_delta`` [N]: what the map's sum exceeds f(x) minus the mean of f over the images drawn by.
        """
        x, shape = inputs.detach(), tuple(inputs.shape[1:])
        whole(f"{self.name} samples", samples, 1)
        generator = torch.Generator().manual_seed(whole(f"{self.name} seed", seed, 0))
        if background is None:
            drawn = torch.randn((samples, *shape), generator=generator, dtype=torch.float64)
        else:
            if not isinstance(background, torch.Tensor) or tuple(background.shape[1:]) != shape or not len(background):
                got = tuple(background.shape) if isinstance(background, torch.Tensor) else type(background).__name__
                raise InputError(f"{self.name} background must be images [B, {', '.join(map(str, shape))}], got {got}")
            chosen = torch.randint(len(background), (samples,), generator=generator)
            drawn = background.detach()[chosen.to(background.device)]
        drawn = drawn.to(x)
        places = torch.rand(samples, generator=generator, dtype=torch.float64).to(x)[:, None, None, None]
        values = torch.zeros_like(x)
        method = find(base, self.name)

        def copy(sample, k):
            return drawn[k] + places[k] * (x[sample] - drawn[k])

        for sample, k, found in maps(method, model, target, len(x), samples, copy, rows):
            values.index_add_(0, sample.to(x.device), (x[sample] - drawn[k]) * found.detach() / samples)
        with torch.no_grad():
            gain = target.scores(model, x)
            for row in range(len(x)):
                for part in drawn.split(rows):
                    index = torch.full((len(part),), row)
                    gain[row] -= target.scores(model, part, index).sum() / samples
        return values, {"convergence_delta": values.flatten(1).sum(1) - gain}


class InputXGradient(ak.Method):
    """x · ∂f/∂x (Shrikumar et al. 2016)."""

    name = "input_x_gradient"
    summary, source = _METHODS[name][1:]
    tags = frozenset({"signed", "deterministic", "linear_in_seed", "thread_safe"})

    def attribute(self, model, inputs, target, *, base="gradient"):
        """Return the product; ``base`` is the method in the place of the gradient."""
        found = find(base, self.name).attribute(model, inputs, target)
        return inputs.detach() * (found[0] if isinstance(found, tuple) else found).detach()
