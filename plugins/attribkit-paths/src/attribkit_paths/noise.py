"""Methods around an image: what the gradients of noisy copies have in common, and how they differ."""

from __future__ import annotations

import torch

import attribkit as ak
from attribkit_paths import _METHODS
from attribkit_paths.base import find, maps, not_negative, whole

#: How many images go through the model at once.
ROWS = 32


class Noise(ak.Method):
    """Maps of noisy copies; a subclass says by ``squared`` what it makes of them."""

    squared = False

    def attribute(
        self, model, inputs, target, *, samples=50, noise=0.15, deviation=None, seed=0, base="gradient", rows=ROWS
    ):
        """Return the map.

        Parameters
        ----------
        model, inputs, target
            As for every method.
        samples
            How many noisy copies of each image.
        noise
            The noise's standard deviation as a share of the image's range, max − min.
        deviation
            The standard deviation itself, in place of ``noise``.
        seed
            What draws the noise; it is the same for every image, but for its deviation.
        base
            The method in the place of the gradient: a name, such as ``"guided_backprop"``, a class or an instance.
        rows
            How many images go through the model at once: it bounds the memory.
        """
        x = inputs.detach()
        whole(f"{self.name} samples", samples, 1)
        if deviation is None:
            spread = (x.flatten(1).amax(1) - x.flatten(1).amin(1)) * not_negative(f"{self.name} noise", noise)
        else:
            spread = x.new_full((len(x),), not_negative(f"{self.name} deviation", deviation))
        generator = torch.Generator().manual_seed(whole(f"{self.name} seed", seed, 0))
        drawn = torch.randn((samples, *x.shape[1:]), generator=generator, dtype=torch.float64).to(x)
        method = find(base, self.name)
        mean, squares = torch.zeros_like(x), torch.zeros_like(x)

        def copy(sample, k):
            return x[sample] + spread[sample][:, None, None, None] * drawn[k]

        first = None
        for sample, k, found in maps(method, model, target, len(x), samples, copy, rows):
            found, place = found.detach(), sample.to(x.device)
            if not self.squared:
                mean.index_add_(0, place, found / samples)
                continue
            # deviations from the first copy's map: the squares of large maps that hardly differ would cancel
            first = torch.zeros_like(x) if first is None else first
            is_first = (k == 0).nonzero()[:, 0]
            first[place[is_first]] = found[is_first]
            found = found - first[place]
            mean.index_add_(0, place, found / samples)
            squares.index_add_(0, place, found**2 / samples)
        return (squares - mean**2).clamp(min=0) if self.squared else mean


class SmoothGrad(Noise):
    """The mean of ∂f/∂x at x + noise (Smilkov et al. 2017, §3)."""

    name = "smooth_grad"
    summary, source = _METHODS[name][1:]
    tags = frozenset({"signed", "deterministic", "linear_in_seed", "thread_safe"})


class VarGrad(Noise):
    """The variance of ∂f/∂x at x + noise, divided by the number of copies (Adebayo et al. 2018, Appendix A)."""

    name = "var_grad"
    summary, source = _METHODS[name][1:]
    tags = frozenset({"deterministic", "thread_safe"})
    squared = True
