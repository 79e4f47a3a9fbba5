"""pytorch-grad-cam's maps, to compare with: its min-max scaling off, its enlargement kept."""

from __future__ import annotations

import contextlib
import warnings
from unittest import mock

import torch
from torch import nn

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what it imports warns
    import cv2
    import numpy as np
    import pytorch_grad_cam

CLASSES = {
    "grad_cam": pytorch_grad_cam.GradCAM,
    "grad_cam_plus_plus": pytorch_grad_cam.GradCAMPlusPlus,
    "layer_cam": pytorch_grad_cam.LayerCAM,
    "score_cam": pytorch_grad_cam.ScoreCAM,
}


def _enlarge_only(cam, target_size=None):
    """Do what pytorch-grad-cam's function of this place does, without bringing each map to the range from 0 to 1."""
    if target_size is None:
        return cam
    return np.float32([cv2.resize(np.float32(image), target_size) for image in cam])


class _CornersNotAligned(nn.Module):
    """Enlarges as everywhere else: pytorch-grad-cam's Score-CAM alone aligns the corners of its masks."""

    def __init__(self, size):
        super().__init__()
        self.size = size

    def forward(self, x):
        return nn.functional.interpolate(x, self.size, mode="bilinear", align_corners=False)


def tokens_to_maps(prefix):
    """Return the hand-written function that pytorch-grad-cam needs for a vision transformer's tokens."""

    def reshape(value):
        side = int((value.shape[1] - prefix) ** 0.5)
        return value[:, prefix:].reshape(len(value), side, side, -1).permute(0, 3, 1, 2)

    return reshape


def channels_first(value):
    """Return a channels-last map as pytorch-grad-cam needs it."""
    return value.permute(0, 3, 1, 2)


def gradcam_map(name, model, layer, inputs, classes, reshape=None):
    """Return pytorch-grad-cam's map [N, H, W]; ``model`` gets its ``.grad`` filled, as that library does."""
    targets = [pytorch_grad_cam.utils.model_targets.ClassifierOutputTarget(int(c)) for c in classes]
    with (
        mock.patch("pytorch_grad_cam.base_cam.scale_cam_image", _enlarge_only),
        mock.patch("torch.nn.UpsamplingBilinear2d", lambda size: _CornersNotAligned(size)),
        mock.patch("tqdm.tqdm", lambda items: items),
        contextlib.closing(_Cam(CLASSES[name], model, layer, reshape)) as cam,
    ):
        return torch.from_numpy(cam.made(inputs.clone().requires_grad_(), targets))


class _Cam:
    def __init__(self, cls, model, layer, reshape):
        self.made = cls(model=model, target_layers=[model.get_submodule(layer)], reshape_transform=reshape)

    def close(self):
        self.made.activations_and_grads.release()
