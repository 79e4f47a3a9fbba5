"""The methods. A is the layer's feature maps [N, K, h, w], G the score's gradient there, ReLU(Σₖ …) the map."""

from __future__ import annotations

import torch
import torch.nn.functional as F

import attribkit as ak
from attribkit_cam import _METHODS
from attribkit_cam.layer import maps_at

#: How many images go through the model at once in Score-CAM.
ROWS = 32


def enlarged(maps, inputs):
    """Return maps [N, K, h, w] at the inputs' height and width, bilinearly, corners not aligned."""
    return F.interpolate(maps, inputs.shape[-2:], mode="bilinear", align_corners=False)


class Cam(ak.Method):
    """A class activation map; a subclass defines `map`.

    The map is cut at zero at the layer's resolution, then enlarged; ``values`` holds it divided by the number of the
    image's channels in each of them, so that ``heatmap()`` is the map.
    """

    tags = frozenset({"deterministic", "thread_safe"})

    def attribute(self, model, inputs, target, *, layer=None):
        """Return the map and, as an extra, the map at the layer's resolution.

        Parameters
        ----------
        model, inputs, target
            As for every method.
        layer
            The layer, by any name that ``attribkit inspect`` lists; default: the last spatial map.

        Returns
        -------
        values : Tensor [N, C, H, W]
        extras : dict
            ``map at LAYER`` [N, h, w]: its name says which layer was taken.
        """
        maps = maps_at(model, inputs, target, layer)
        cam = self.map(maps.activations, maps.gradients, model, inputs, target).clamp(min=0)[:, None]
        values = (enlarged(cam, inputs) / inputs.shape[1]).expand_as(inputs).clone()
        return values, {f"map at {maps.name or 'the image'}": cam[:, 0]}

    def map(self, activations, gradients, model, inputs, target):
        """Return the map [N, h, w] before it is cut at zero."""
        raise NotImplementedError(f"{type(self).__name__} does not define map()")


class GradCam(Cam):
    """ReLU(Σₖ wₖ Aₖ), wₖ the mean of Gₖ over the map (Selvaraju et al. 2017, eq. 1 and 2)."""

    name = "grad_cam"
    summary, source = _METHODS[name][1:]
    tags = frozenset({"deterministic", "thread_safe", "homogeneous"})

    def map(self, activations, gradients, model, inputs, target):
        """Return Σₖ wₖ Aₖ."""
        return (gradients.mean((2, 3), keepdim=True) * activations).sum(1)


class GradCamPlusPlus(Cam):
    """ReLU(Σₖ wₖ Aₖ), wₖ = Σ α max(G, 0) (Chattopadhay et al. 2018, eq. 19).

    α = G² / (2 G² + G³ Σ A + 1e-6), the sum over the map; 0 where G is 0. The score itself takes the place of its
    exponential, as in pytorch-grad-cam.
    """

    name = "grad_cam_plus_plus"
    summary, source = _METHODS[name][1:]

    def map(self, activations, gradients, model, inputs, target):
        """Return Σₖ wₖ Aₖ."""
        squares = gradients**2
        alpha = squares / (2 * squares + activations.sum((2, 3), keepdim=True) * gradients**3 + 1e-6)
        alpha = torch.where(gradients == 0, 0.0, alpha)
        weights = (alpha * gradients.clamp(min=0)).sum((2, 3), keepdim=True)
        return (weights * activations).sum(1)


class LayerCam(Cam):
    """ReLU(Σₖ max(Gₖ, 0) Aₖ), place by place (Jiang et al. 2021, eq. 4 and 5)."""

    name = "layer_cam"
    summary, source = _METHODS[name][1:]
    tags = frozenset({"deterministic", "thread_safe", "homogeneous"})

    def map(self, activations, gradients, model, inputs, target):
        """Return Σₖ max(Gₖ, 0) Aₖ."""
        return (gradients.clamp(min=0) * activations).sum(1)


class ScoreCam(Cam):
    """ReLU(Σₖ wₖ Aₖ), w the softmax over k of the scores of x ∘ Hₖ (Wang et al. 2020, Algorithm 1).

    Hₖ is Aₖ enlarged to the image and brought to the range from 0 to 1.
    """

    name = "score_cam"
    summary, source = _METHODS[name][1:]

    def map(self, activations, gradients, model, inputs, target):
        """Return Σₖ wₖ Aₖ."""
        count, channels = activations.shape[:2]
        scores = []
        with torch.no_grad():
            for row in range(count):
                for start in range(0, channels, ROWS):
                    masks = enlarged(activations[row : row + 1, start : start + ROWS], inputs)[0]
                    low, high = masks.amin((1, 2), keepdim=True), masks.amax((1, 2), keepdim=True)
                    masks = (masks - low) / (high - low + 1e-8)
                    index = torch.full((len(masks),), row, device=inputs.device)
                    scores.append(target.scores(model, inputs[row].detach() * masks[:, None], index))
        weights = torch.cat(scores).view(count, channels, 1, 1).softmax(1)
        return (weights * activations).sum(1)


class GuidedGradCam(GradCam):
    """Guided backprop's map times the enlarged Grad-CAM, pixel by pixel (Selvaraju et al. 2017, §3.2)."""

    name = "guided_grad_cam"
    summary, source = _METHODS[name][1:]
    tags = frozenset({"deterministic", "thread_safe"})

    def attribute(self, model, inputs, target, *, layer=None):
        """Return the product [N, C, H, W] and, as an extra, the map at the layer's resolution; see `Cam.attribute`."""
        guided = ak.methods()["guided_backprop"].load()().attribute(model, inputs, target)
        values, extras = super().attribute(model, inputs, target, layer=layer)
        return guided * values * inputs.shape[1], extras
