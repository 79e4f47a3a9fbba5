"""ZFNet, the network of Zeiler & Fergus, "Visualizing and Understanding Convolutional Networks" (ECCV 2014), Figure 3.

The paper leaves some things open; what is chosen here:

- conv1 is padded by 1 and conv2 not at all, and pools round up, so that the maps have the paper's sizes
  (110, 55, 26, 13, 13, 13, 6).
- Contrast normalisation across feature maps is Krizhevsky et al.'s local response normalisation (size 5, alpha 1e-4,
  beta 0.75, k 2).
- Inputs are roughly in [-128, 128]: pixel values 0…255 less ImageNet's mean colour (``default_cfg``). The paper
  subtracts each pixel's mean over the training set, which only a training set gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN
from timm.models import build_model_with_cfg, generate_default_cfgs, is_model, model_entrypoint, register_model
from torch import nn

from attribkit.errors import InputError, ModelError

__all__ = ["ZFNet", "zfnet"]

#: Feature maps of conv1…conv5 at width 1.
CHANNELS = (96, 256, 384, 384, 256)


class ZFNet(nn.Module):
    """Five convolutions and three fully connected layers; 62,357,608 parameters with the defaults.

    The modules are, in order of execution: ``conv1, relu1, pool1, norm1, conv2, relu2, pool2, norm2, conv3, relu3,
    conv4, relu4, conv5, relu5, pool5, fc6, relu6, drop6, fc7, relu7, drop7, fc8``. Weights start from N(0, 0.01) and
    biases from 0 (paper §3).

    Parameters
    ----------
    num_classes
        Outputs of ``fc8``; with 0 it is an identity and the model returns fc7's features.
    in_chans
        Channels of the input.
    img_size
        Height and width of the input (one number for both): fc6 has weights for every position of pool5's map.
    width
        Multiplies the number of feature maps and of hidden units; 1 is the paper's.
    hidden
        Units of fc6 and fc7 at width 1.
    drop_rate
        Dropout after fc6 and fc7.
    device, dtype
        Where the parameters are made, and of which type.

    Raises
    ------
    InputError
        If a number is out of range, or the image is too small for pool5 to have a single position.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        img_size: int | Sequence[int] = 224,
        width: float = 1.0,
        hidden: int = 4096,
        drop_rate: float = 0.5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if num_classes < 0 or in_chans < 1 or hidden < 1 or not width > 0:
            raise InputError(
                f"zfnet: num_classes={num_classes} must be at least 0, in_chans={in_chans} and hidden={hidden} at least"
                f" 1, width={width} above 0"
            )
        if not 0 <= drop_rate <= 1:
            raise InputError(f"zfnet: drop_rate={drop_rate} must lie in 0…1")
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        c1, c2, c3, c4, c5 = (max(1, round(width * channels)) for channels in CHANNELS)
        units = max(1, round(width * hidden))
        size = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
        rows, columns = (_pool5_size(side, size) for side in size)

        self.conv1 = nn.Conv2d(in_chans, c1, 7, stride=2, padding=1, **made)
        self.relu1 = nn.ReLU()
        self.pool1 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.norm1 = nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=2.0)
        self.conv2 = nn.Conv2d(c1, c2, 5, stride=2, **made)
        self.relu2 = nn.ReLU()
        self.pool2 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.norm2 = nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=2.0)
        self.conv3 = nn.Conv2d(c2, c3, 3, padding=1, **made)
        self.relu3 = nn.ReLU()
        self.conv4 = nn.Conv2d(c3, c4, 3, padding=1, **made)
        self.relu4 = nn.ReLU()
        self.conv5 = nn.Conv2d(c4, c5, 3, padding=1, **made)
        self.relu5 = nn.ReLU()
        self.pool5 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.fc6 = nn.Linear(c5 * rows * columns, units, **made)
        self.relu6 = nn.ReLU()
        self.drop6 = nn.Dropout(drop_rate)
        self.fc7 = nn.Linear(units, units, **made)
        self.relu7 = nn.ReLU()
        self.drop7 = nn.Dropout(drop_rate)
        self.fc8: nn.Module = nn.Linear(units, num_classes, **made) if num_classes else nn.Identity()

        # What timm's tools read: the width before and after the hidden layers, and the maps by stride.
        self.num_classes, self.in_chans, self.img_size = num_classes, in_chans, (size[0], size[1])
        self.num_features, self.head_hidden_size, self.drop_rate = c5, units, drop_rate
        self.feature_info = [
            {"module": "relu1", "num_chs": c1, "reduction": 2},
            {"module": "pool1", "num_chs": c1, "reduction": 4},
            {"module": "relu2", "num_chs": c2, "reduction": 8},
            {"module": "relu5", "num_chs": c5, "reduction": 16},
            {"module": "pool5", "num_chs": c5, "reduction": 32},
        ]
        self.apply(_initialise)

    def get_classifier(self) -> nn.Module:
        """Return the last layer, ``fc8``."""
        return self.fc8

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace ``fc8`` by a fresh one for ``num_classes`` classes (0: by an identity).

        Parameters
        ----------
        num_classes
            Outputs of the new layer.
        global_pool
            Part of timm's interface; the network has no global pooling, so anything but None or "" is refused.
        """
        if global_pool or num_classes < 0:
            raise InputError(f"zfnet: cannot have num_classes={num_classes}, global_pool={global_pool!r}")
        made: dict[str, Any] = {"device": self.fc7.weight.device, "dtype": self.fc7.weight.dtype}
        self.num_classes = num_classes
        self.fc8 = nn.Linear(self.head_hidden_size, num_classes, **made) if num_classes else nn.Identity()
        _initialise(self.fc8)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Return pool5's maps: [N, C, H, W] to [N, 256, 6, 6] for 224×224 inputs at width 1."""
        x = self.norm1(self.pool1(self.relu1(self.conv1(x))))
        x = self.norm2(self.pool2(self.relu2(self.conv2(x))))
        x = self.relu3(self.conv3(x))
        x = self.relu4(self.conv4(x))
        x = self.relu5(self.conv5(x))
        maps: torch.Tensor = self.pool5(x)
        return maps

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Return the scores [N, num_classes] for pool5's maps, or fc7's features with ``pre_logits``."""
        x = self.drop6(self.relu6(self.fc6(torch.flatten(x, 1))))
        x = self.drop7(self.relu7(self.fc7(x)))
        scores: torch.Tensor = x if pre_logits else self.fc8(x)
        return scores

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the scores [N, num_classes] of images [N, C, H, W]."""
        return self.forward_head(self.forward_features(x))


def _pool5_size(side: int, size: Sequence[int]) -> int:
    """Return the length of pool5's map for an image side: the arithmetic of the layers above it."""
    if len(size) != 2 or side < 1:
        raise InputError(f"zfnet: img_size={tuple(size)} must be a height and a width")
    conv1 = (side + 2 - 7) // 2 + 1
    pool1 = _ceil_pool(conv1)
    conv2 = (pool1 - 5) // 2 + 1
    pool5 = _ceil_pool(_ceil_pool(conv2))
    if min(conv1, pool1, conv2, pool5) < 1:
        raise InputError(f"zfnet: img_size={tuple(size)} is too small: nothing of it would be left at pool5")
    return pool5


def _ceil_pool(side: int) -> int:
    return -((3 - side) // 2) + 1 if side >= 1 else 0


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.normal_(module.weight, std=0.01)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


default_cfgs = generate_default_cfgs(
    {
        "zfnet": {
            "url": "",
            "num_classes": 1000,
            "input_size": (3, 224, 224),
            "fixed_input_size": True,
            "pool_size": (6, 6),
            "crop_pct": 224 / 256,
            "crop_mode": "center",
            "interpolation": "bilinear",
            "mean": IMAGENET_DEFAULT_MEAN,
            "std": (1 / 255, 1 / 255, 1 / 255),
            "first_conv": "conv1",
            "classifier": "fc8",
        }
    }
)


def zfnet(num_classes: int = 1000, *, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build ZFNet with random weights; also ``timm.create_model("zfnet")``.

    Parameters
    ----------
    num_classes
        Number of classes (0: no last layer).
    pretrained
        Part of timm's interface; the paper's weights were never published, so True is refused.
    **kwargs
        `ZFNet`'s other parameters, and what ``timm.create_model`` takes (``features_only``, ``pretrained_cfg``, …).

    Returns
    -------
    ZFNet
        In training mode, as all constructors leave it (or timm's wrapper with ``features_only=True``).

    Raises
    ------
    ModelError
        If ``pretrained`` is true.
    """
    if pretrained:
        raise ModelError("zfnet: there are no pretrained weights; use pretrained=False, or a checkpoint file")
    built: nn.Module = build_model_with_cfg(ZFNet, "zfnet", False, num_classes=num_classes, **kwargs)
    return built


# A second import of this file (a reload, a second copy of the module) must not make timm warn about its own name.
if not (is_model("zfnet") and model_entrypoint("zfnet").__module__ == __name__):
    register_model(zfnet)
