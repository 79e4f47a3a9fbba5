"""Right methods of different nature, written against the public interface only: the kit must pass every one of them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

import attribkit as ak


class InputXGradient(ak.Method):
    name = "input_x_gradient"
    summary = "Input times gradient"
    tags = {"signed", "deterministic", "linear_in_seed"}

    def attribute(self, model, inputs, target, **options):
        x = inputs.detach().requires_grad_()
        scores = target.scores(model, x)
        return x.detach() * torch.autograd.grad(scores.sum(), x)[0]


class IntegratedGradients(ak.Method):
    """Several backward passes, all in one batch."""

    name = "integrated_gradients"
    summary = "The gradient's mean on the way from black, times the input"
    tags = {"signed", "deterministic", "linear_in_seed"}

    def attribute(self, model, inputs, target, *, steps=6):
        alphas = (torch.arange(steps, dtype=inputs.dtype, device=inputs.device) + 0.5) / steps
        x = (alphas[:, None, None, None, None] * inputs.detach()).flatten(0, 1).requires_grad_()
        index = torch.arange(len(inputs)).repeat(steps)
        (gradient,) = torch.autograd.grad(target.scores(model, x, index).sum(), x)
        return inputs.detach() * gradient.reshape(steps, *inputs.shape).mean(0)


class SmoothGrad(ak.Method):
    """Several backward passes one after another, with noise of its own, the same for every sample."""

    name = "smooth_grad"
    summary = "The mean gradient of noisy copies"
    tags = {"signed", "deterministic", "linear_in_seed"}

    def attribute(self, model, inputs, target, *, samples=4, noise=0.1, seed=0):
        generator = torch.Generator().manual_seed(seed)
        total = torch.zeros_like(inputs)
        for _ in range(samples):
            drawn = torch.randn(inputs.shape[1:], generator=generator, dtype=torch.float64)
            x = (inputs.detach() + noise * drawn.to(inputs)).requires_grad_()
            total += torch.autograd.grad(target.scores(model, x).sum(), x)[0]
        return total / samples


class RandomMasks(ak.Method):
    """RISE-like: scores of randomly masked copies, weighted by the masks."""

    name = "random_masks"
    summary = "Scores of images seen through random masks (after RISE)"
    tags = {"perturbation", "signed", "deterministic", "linear_in_seed"}

    def attribute(self, model, inputs, target, *, masks=12, seed=0):
        generator = torch.Generator().manual_seed(seed)
        coarse = (torch.rand((masks, 1, 3, 3), generator=generator, dtype=torch.float64) < 0.5).to(inputs)
        drawn = F.interpolate(coarse, size=inputs.shape[-2:], mode="bilinear", align_corners=False)
        index = torch.arange(len(inputs)).repeat_interleave(masks)
        seen = inputs[index] * drawn.repeat(len(inputs), 1, 1, 1)
        with torch.no_grad():
            scores = target.scores(model, seen, index).reshape(len(inputs), masks)
        maps = torch.einsum("nm,mhw->nhw", scores, drawn[:, 0]) / (drawn[:, 0].sum(0) + 1e-6)
        return maps[:, None].expand_as(inputs).clone()


class Ablation(ak.Method):
    """Perturbation pixel by pixel, in a loop."""

    name = "ablation"
    summary = "What the score loses when one pixel is set to zero"
    tags = {"perturbation", "signed", "deterministic", "linear_in_seed"}

    def attribute(self, model, inputs, target, **options):
        height, width = inputs.shape[-2:]
        with torch.no_grad():
            clean = target.scores(model, inputs.clone())
            columns = []
            for place in range(height * width):
                changed = inputs.clone()
                changed.flatten(2)[:, :, place] = 0
                columns.append(clean - target.scores(model, changed))
        maps = torch.stack(columns, 1).reshape(len(inputs), 1, height, width)
        return maps.expand_as(inputs).clone()


class CoarseMap(ak.Method):
    """CAM-like: a coarse map, made from the positive part of gradient times input, upsampled to the image."""

    name = "coarse_map"
    summary = "Positive evidence on a coarse grid, upsampled"
    tags = {"deterministic", "homogeneous"}

    def attribute(self, model, inputs, target, **options):
        x = inputs.detach().requires_grad_()
        evidence = x.detach() * torch.autograd.grad(target.scores(model, x).sum(), x)[0]
        coarse = F.adaptive_avg_pool2d(evidence.sum(1, keepdim=True), (2, 2)).clamp(min=0)
        fine = F.interpolate(coarse, size=inputs.shape[-2:], mode="bilinear", align_corners=False)
        return fine.expand_as(inputs).clone()


class GradCam(ak.Method):
    """Hooks of its own: the last map before the score, weighted by the score's mean gradient there."""

    name = "grad_cam"
    summary = "The last convolution's maps weighted by their mean gradient (after Grad-CAM)"
    tags = {"deterministic"}

    def attribute(self, model, inputs, target, **options):
        maps = []

        def keep(output):
            maps.append(output)
            return output.clone()  # what follows may work in place

        convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
        handles = [module.register_forward_hook(lambda m, i, out: keep(out)) for module in convolutions]
        try:
            x = inputs.detach().requires_grad_()
            scores = target.scores(model, x)
        finally:
            for handle in handles:
                handle.remove()
        gradient = None
        for last in reversed([a for a in maps if a.shape[-1] > 1]):
            (gradient,) = torch.autograd.grad(scores.sum(), last, allow_unused=True, retain_graph=True)
            if gradient is not None:
                break
        if gradient is None:  # no convolution on the way: the gradient itself is the map
            return torch.autograd.grad(scores.sum(), x)[0]
        cam = (gradient.mean((2, 3), keepdim=True) * last).sum(1, keepdim=True).clamp(min=0).detach()
        fine = F.interpolate(cam, size=inputs.shape[-2:], mode="bilinear", align_corners=False)
        return fine.expand_as(inputs).clone()


class Sign(ak.Method):
    """Few different values, all of them float32 numbers: no loss of precision."""

    name = "gradient_sign"
    summary = "The sign of the gradient"
    tags = {"deterministic", "signed"}

    def attribute(self, model, inputs, target, **options):
        x = inputs.detach().requires_grad_()
        return torch.autograd.grad(target.scores(model, x).sum(), x)[0].sign()


class Undirected(ak.Method):
    """Scaled to a largest value of 1 in each sample: no homogeneity."""

    name = "largest_is_one"
    summary = "Absolute gradient over its largest value"
    tags = {"deterministic"}

    def attribute(self, model, inputs, target, **options):
        x = inputs.detach().requires_grad_()
        gradient = torch.autograd.grad(target.scores(model, x).sum(), x)[0].abs()
        largest = gradient.amax((1, 2, 3), keepdim=True)
        return gradient / torch.where(largest > 0, largest, torch.ones_like(largest))


class WithExtras(InputXGradient):
    name = "with_extras"
    summary = "Input times gradient, and the scores as an extra, and one that is undefined"

    def attribute(self, model, inputs, target, **options):
        with torch.no_grad():
            scores = target.scores(model, inputs)
        return super().attribute(model, inputs, target), {"score": scores, "ratio": scores * torch.nan}


class ScaledRectify(ak.InverseLayer):
    """Guided backprop whose signal keeps its size at every rectifier."""

    def carry(self, signal, site):
        positive = signal.clamp(min=0)
        size = signal.flatten(1).norm(dim=1) / positive.flatten(1).norm(dim=1).clamp(min=1e-30)
        return site.plain(positive * size.reshape(-1, *[1] * (signal.ndim - 1)))


class ScaledGuided(ak.InverseMethod):
    name = "scaled_guided"
    summary = "Guided backprop whose signal keeps its size"
    inverse_layers = {"rectifier": ScaledRectify()}
    tags = {"inverse", "signed", "deterministic", "homogeneous"}


class Straight(ak.InverseLayer):
    signal_only = True

    def carry(self, signal, site):
        return signal


class StraightThrough(ak.InverseMethod):
    """A table that rewrites gates as well, by class and by kind."""

    name = "straight_through"
    summary = "Gates and rectifiers pass the signal on"
    inverse_layers = {"rectifier": Straight(), "gate": Straight(), nn.Sigmoid: Straight()}
    tags = {"inverse", "signed", "deterministic", "linear_in_seed"}


class Epsilon(ak.InverseLayer):
    """LRP's epsilon rule as modified gradient: relevance over the output, times the input."""

    needs = {"input", "output"}

    def carry(self, signal, site):
        stable = site.output + 1e-3 * (2 * (site.output >= 0).to(signal) - 1)
        carried = site.plain(signal / stable)
        if not isinstance(carried, tuple):
            return carried * site.input
        return tuple(part if part is None else part * x for part, x in zip(carried, site.inputs, strict=True))


class LayerwiseRelevance(ak.InverseMethod):
    """A table for linear operations, with what was kept from the way up."""

    name = "lrp_epsilon"
    summary = "Layer-wise relevance propagation, epsilon rule"
    inverse_layers = {"conv": Epsilon(), "linear": Epsilon(), "rectifier": Straight(), "gate": Straight()}
    tags = {"inverse", "deterministic", "linear_in_seed", "signed"}


RIGHT = (
    InputXGradient,
    IntegratedGradients,
    SmoothGrad,
    RandomMasks,
    Ablation,
    CoarseMap,
    GradCam,
    Sign,
    Undirected,
    WithExtras,
    ScaledGuided,
    StraightThrough,
    LayerwiseRelevance,
)
