"""Diagnosis of a first layer (paper §4.1): dead and dominating filters, missing mid frequencies, aliasing."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

import attribkit
from attribkit.checks import check_inputs, usable_model
from attribkit.engine.state import pristine
from attribkit.errors import InputError, ModelError
from attribkit.features import _filters
from attribkit.features._inputs import Inputs
from attribkit.features._observe import look
from attribkit.features._tables import write_csv
from attribkit.progress import track

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["DOMINANT", "WEAK", "Diagnosis", "diagnose"]

Array = npt.NDArray[np.float64]

#: A filter dominates when its RMS exceeds so many times the median filter's.
DOMINANT = 3.0
#: A filter is weak when its RMS is below this fraction of the median filter's.
WEAK = 0.1
#: The radius to which the paper scales filters back (§3).
RADIUS = 0.1


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """What is known of the K filters of a model's first convolution.

    Attributes
    ----------
    model, layer, rectifier
        The model's class, the convolution, and the site whose output tells whether a filter is active.
    weight
        float64 [K, C, h, w].
    stride, groups
        The convolution's.
    rms
        float64 [K]: root mean square of a filter's weights.
    peak
        float64 [K]: the largest output of the rectifier over all images and positions; nan where there were none.
    images
        Over how many images.
    shares
        By band, float64 [K]: share of a filter's spectral energy.
    aliasing_ratio, aliased_share
        float64 [K]: see `attribkit.features._filters.aliasing`.
    """

    model: str
    layer: str
    rectifier: str
    weight: Array
    stride: tuple[int, int]
    groups: int
    rms: Array
    peak: Array
    images: int
    shares: dict[str, Array]
    aliasing_ratio: Array
    aliased_share: Array

    @property
    def silent(self) -> npt.NDArray[np.int64]:
        """The filters that were never active on any image."""
        return np.flatnonzero(self.peak <= 0)

    @property
    def weak(self) -> npt.NDArray[np.int64]:
        """The filters whose RMS is below `WEAK` times the median."""
        return np.flatnonzero(self.rms < WEAK * np.median(self.rms))

    @property
    def dead(self) -> npt.NDArray[np.int64]:
        """The filters that are silent or weak."""
        return np.union1d(self.silent, self.weak)

    @property
    def dominating(self) -> npt.NDArray[np.int64]:
        """The filters whose RMS exceeds `DOMINANT` times the median."""
        return np.flatnonzero(self.rms > DOMINANT * np.median(self.rms))

    @property
    def preferred(self) -> npt.NDArray[np.str_]:
        """Each filter's band of highest mean power: its share of energy over the band's share of all frequencies [K].

        A filter of zeros has none: ``""``.
        """
        areas = _filters.band_areas(max(_filters.GRID, *self.weight.shape[-2:]))
        names = list(self.shares)
        density = np.stack([self.shares[name] / areas[name] for name in names])
        best = np.asarray(names)[np.nan_to_num(density, nan=-1.0).argmax(0)]
        return np.where(np.isnan(density[0]), "", best)

    def verdict(self) -> list[str]:
        """Return the findings, a sentence each, with the numbers they rest on."""
        from attribkit.features._verdict import sentences

        return sentences(self)

    def to_csv(self, path: str | os.PathLike[str]) -> Path:
        """Write one row a filter."""
        header = ["filter", "rms", "peak", "dead", "dominating", *(f"{band}_share" for band in self.shares)]
        header += ["preferred", "aliasing_ratio", "aliased_share"]
        dead, dominating = set(self.dead.tolist()), set(self.dominating.tolist())
        rows = [
            [k, self.rms[k], None if np.isnan(self.peak[k]) else self.peak[k], int(k in dead), int(k in dominating)]
            + [None if np.isnan(share[k]) else share[k] for share in self.shares.values()]
            + [self.preferred[k], self.aliasing_ratio[k], self.aliased_share[k]]
            for k in range(len(self.rms))
        ]
        return write_csv(path, header, rows)

    def plot(self) -> Figure:
        """Draw the filters and their measures (`attribkit.features.plot`)."""
        from attribkit.features.draw.diagnosis import plot

        return plot(self)


def diagnose(model: nn.Module, inputs: Tensor | Inputs, *, active: bool = True, batch_size: int = 64) -> Diagnosis:
    """Examine the filters of a model's first convolution (paper §4.1).

    Parameters
    ----------
    model
        Any torch module with a 2-d convolution; it runs in eval mode and is left as it was.
    inputs
        Images [N, C, H, W] to look for dead filters with; where ``active`` is false, one of any content will do to find
        the layer.
    active
        Whether to run the images.
    batch_size
        Images a forward pass.

    Returns
    -------
    Diagnosis

    Raises
    ------
    ModelError
        The forward pass calls no ``nn.Conv2d``.
    """
    model = usable_model(model)
    if isinstance(inputs, Tensor):
        check_inputs(inputs)
    images = inputs if isinstance(inputs, Inputs) else Inputs(inputs)
    if batch_size < 1:
        raise InputError(f"batch_size must be a positive int, got {batch_size!r}")
    name, rectifier, convolution = _first(model, images.one(0))
    weight = convolution.weight.detach().double().cpu().numpy()
    peak = _peaks(model, images, rectifier, batch_size) if active else np.full(len(weight), np.nan)
    spectrum = _filters.power(weight)
    stride = (int(convolution.stride[0]), int(convolution.stride[1]))
    ratio, share = _filters.aliasing(spectrum, stride)
    return Diagnosis(
        model=type(model).__name__,
        layer=name,
        rectifier=rectifier,
        weight=weight,
        stride=stride,
        groups=convolution.groups,
        rms=_filters.rms(weight),
        peak=peak,
        images=len(images) if active else 0,
        shares=_filters.band_shares(spectrum),
        aliasing_ratio=ratio,
        aliased_share=share,
    )


def _first(model: nn.Module, one: Tensor) -> tuple[str, str, nn.Conv2d]:
    """Return the first convolution's site, the site that shows its activity, and its module.

    That site is the first rectifier after it with as many maps, before another convolution; else the convolution.
    """
    sites = attribkit.inspect(model, one).sites
    modules = dict(model.named_modules())
    for i, site in enumerate(sites):
        module = modules.get(site.path)
        if site.kind != "conv" or not isinstance(module, nn.Conv2d):
            continue
        for later in sites[i + 1 :]:
            if later.kind in ("conv", "linear") or later.output_shape is None:
                break
            if later.kind == "rectifier" and len(later.output_shape) == 4:
                if later.output_shape[1] == module.out_channels:
                    return site.name, later.name, module
                break
        return site.name, site.name, module
    raise ModelError(f"{type(model).__name__} calls no nn.Conv2d: there is no first convolution to look at")


def _peaks(model: nn.Module, images: Inputs, layer: str, batch_size: int) -> Array:
    found: list[Tensor] = []
    with pristine(model, images.one(0)):
        for rows in track(images.rows(batch_size), "activity"):
            maps = look(model, images.batch(rows), [layer]).values[layer]
            found.append(maps.movedim(1, 0).flatten(1).amax(1).double().cpu())
    return torch.stack(found).amax(0).numpy()
