"""Correspondence (paper Table 1): does masking the same part change the features of different images the same way?"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from attribkit.checks import check_inputs, usable_model
from attribkit.engine.state import pristine
from attribkit.errors import InputError, InputTypeError, as_int
from attribkit.features._boxes import Box, _box
from attribkit.features._observe import check_layers, last_linear, look, top_maps
from attribkit.features._tables import write_csv
from attribkit.progress import track

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Correspondence", "correspondence", "sign_distances"]


@dataclass(frozen=True, eq=False)
class Correspondence:
    """Hamming distances of the signs of feature changes, by layer, part and pair of images.

    L layers, N images, P = N·(N − 1)/2 pairs, T trials of random masks.

    Attributes
    ----------
    layers, parts, ids
        Names of the layers, the parts and the images.
    pairs
        The pairs of images (i, j), i < j, [P].
    distances
        By part, float64 [L, P]: the share of features whose change differs in sign.
    random
        By part, float64 [L, T, P]: the same for masks of the part's sizes at random places.
    inputs
        The images [N, C, H, W].
    boxes
        By part, int64 [N, 4]: the masks in the inputs' pixels.
    seed, fill
        Of the random places; what masks hold.
    """

    layers: tuple[str, ...]
    parts: tuple[str, ...]
    ids: tuple[str, ...]
    pairs: tuple[tuple[int, int], ...]
    distances: dict[str, npt.NDArray[np.float64]]
    random: dict[str, npt.NDArray[np.float64]]
    inputs: Tensor
    boxes: dict[str, npt.NDArray[np.int64]]
    seed: int
    fill: float

    def summary(self) -> list[dict[str, Any]]:
        """Return a row for each layer and part and its random control, and one for all controls together.

        Keys: ``layer``, ``part``, ``masks`` (``"part"`` or ``"random"``), ``mean`` and ``standard_error`` over the
        pairs (over trials and pairs), ``delta`` (the sum over ordered pairs, of a control the mean trial's), ``count``.
        """
        rows = []
        for i, layer in enumerate(self.layers):
            for part in self.parts:
                rows.append(_row(layer, part, "part", self.distances[part][i], 1))
            for part in self.parts:
                if self.random[part].size:
                    rows.append(_row(layer, part, "random", self.random[part][i], len(self.random[part][i])))
            everything = np.concatenate([self.random[part][i] for part in self.parts])
            if everything.size and len(self.parts) > 1:
                rows.append(_row(layer, "all parts", "random", everything, len(everything)))
        return rows

    def to_csv(self, path: str | os.PathLike[str]) -> Path:
        """Write `summary` as a table."""
        header = ["layer", "part", "masks", "mean", "standard_error", "delta", "count"]
        return write_csv(path, header, [[row[key] for key in header] for row in self.summary()])

    def plot(self, denormalize: Any = None) -> Figure:
        """Draw the masks and the distances (`attribkit.features.plot`); ``denormalize`` is a `LoadedModel`'s."""
        from attribkit.features.draw.correspondence import plot

        return plot(self, denormalize)


def correspondence(
    model: nn.Module,
    inputs: Tensor,
    parts: Mapping[str, Sequence[Sequence[int]] | Tensor],
    *,
    layers: Sequence[str] | None = None,
    trials: int = 20,
    seed: int = 0,
    fill: float = 0.0,
    batch_size: int = 32,
    ids: Sequence[str] | None = None,
) -> Correspondence:
    """Measure how consistently masking a part changes the features of several images (paper §4.3, Table 1).

    With ``x`` a layer's feature vector of image i and ``x̃`` that of the image with the part masked, ε_i = x − x̃. Of two
    images, the distance is the share of features in which sign(ε_i) and sign(ε_j) differ. sign(0) = 0 is a value of its
    own: it equals another 0 and differs from −1 and 1.

    Parameters
    ----------
    model
        The network; it runs in eval mode and is left as it was.
    inputs
        Float tensor [N, C, H, W], N ≥ 2.
    parts
        For each part, its box in each input [N, 4]: top, left, bottom, right in pixels, half-open.
    layers
        Where to measure; None: the top layer with maps, with its pool (ZFNet's pool5; of a transformer the last
        block), and the last fully connected layer before the classifier (fc7).
    trials
        How many times masks of the same sizes are put at random places, uniform over all inside the image; 0: never.
    seed
        Of the random places.
    fill
        What a mask holds, in the inputs' normalised units: 0 is the mean colour.
    batch_size
        Images a forward pass.
    ids
        The images' names.

    Returns
    -------
    Correspondence

    Raises
    ------
    InputError
        Fewer than two inputs, no part, or a box outside the input.
    UnknownNameError
        The model has no such layer.
    """
    model = usable_model(model)
    check_inputs(inputs)
    if len(inputs) < 2:
        raise InputError(f"a correspondence needs at least two images, got inputs {tuple(inputs.shape)}")
    if as_int("trials", trials) < 0 or as_int("batch_size", batch_size) < 1:
        raise InputError(f"trials must be an int from 0 and batch_size one from 1, got {trials!r} and {batch_size!r}")
    boxes = {str(part): _check(given, inputs, str(part)) for part, given in _mapping(parts).items()}
    if layers is None:
        layers = tuple(dict.fromkeys((top_maps(model, inputs, pooled=True), last_linear(model, inputs))))
    layers = check_layers(layers)
    inputs = inputs.detach()
    generator = torch.Generator().manual_seed(as_int("seed", seed))
    masks: list[tuple[str, npt.NDArray[np.int64]]] = list(boxes.items())
    masks += [(part, _elsewhere(boxes[part], inputs, generator)) for part in boxes for _ in range(trials)]
    count, pairs = len(inputs), tuple(combinations(range(len(inputs)), 2))
    found: dict[str, list[npt.NDArray[np.float64]]] = {part: [] for part in boxes}
    with pristine(model, inputs), torch.no_grad():
        clean = _vectors(model, inputs, layers, batch_size)
        for part, places in track(masks, "masks"):
            masked = inputs.clone()
            for row, (top, left, bottom, right) in zip(masked, places.tolist(), strict=True):
                row[:, top:bottom, left:right] = fill
            changed = _vectors(model, masked, layers, batch_size)
            found[part].append(np.stack([sign_distances(clean[name] - changed[name], pairs) for name in layers]))
    empty = np.zeros((len(layers), 0, len(pairs)))
    return Correspondence(
        layers=layers,
        parts=tuple(boxes),
        ids=tuple(ids) if ids is not None else tuple(map(str, range(count))),
        pairs=pairs,
        distances={part: each[0] for part, each in found.items()},
        random={part: np.stack(each[1:], axis=1) if trials else empty for part, each in found.items()},
        inputs=inputs.cpu(),
        boxes=boxes,
        seed=seed,
        fill=float(fill),
    )


def sign_distances(changes: Tensor, pairs: Sequence[tuple[int, int]]) -> npt.NDArray[np.float64]:
    """Return for each pair of rows of ``changes`` [N, D] the share of features whose signs differ, [P]."""
    signs = changes.sign()
    return np.asarray([float((signs[i] != signs[j]).double().mean()) for i, j in pairs])


def _vectors(model: nn.Module, inputs: Tensor, layers: tuple[str, ...], batch_size: int) -> dict[str, Tensor]:
    seen = [look(model, part, layers) for part in torch.split(inputs, batch_size)]
    return {layer: torch.cat([one.vectors(layer) for one in seen]) for layer in layers}


def _row(layer: str, part: str, masks: str, values: npt.NDArray[np.float64], trials: int) -> dict[str, Any]:
    error = float(values.std(ddof=1) / np.sqrt(values.size)) if values.size > 1 else None
    row = {"layer": layer, "part": part, "masks": masks, "mean": float(values.mean()), "standard_error": error}
    return {**row, "delta": 2 * float(values.sum()) / trials, "count": int(values.size)}


def _mapping(parts: Any) -> Mapping[Any, Any]:
    if not isinstance(parts, Mapping):
        raise InputTypeError(f"parts must map names to boxes [N, 4], got {type(parts).__name__}")
    if not parts:
        raise InputError("parts is empty: give at least one part and its boxes [N, 4]")
    return parts


def _check(given: Any, inputs: Tensor, part: str) -> npt.NDArray[np.int64]:
    rows = given.tolist() if hasattr(given, "tolist") else given
    if not isinstance(rows, Sequence) or len(rows) != len(inputs):
        got = len(rows) if isinstance(rows, Sequence) else type(rows).__name__
        raise InputError(f"part {part!r} needs one box an image, {len(inputs)}, got {got}")
    height, width = inputs.shape[-2:]
    found: list[Box] = []
    for n, row in enumerate(rows):
        box = _box(row, f"part {part!r} of image {n}")
        if box[2] > height or box[3] > width:
            raise InputError(f"part {part!r} of image {n}: box {list(box)} reaches beyond the input, {height}×{width}")
        found.append(box)
    return np.asarray(found, dtype=np.int64)


def _elsewhere(boxes: npt.NDArray[np.int64], inputs: Tensor, generator: torch.Generator) -> npt.NDArray[np.int64]:
    """Return boxes of the same sizes at places drawn uniformly from all that lie inside the image."""
    height, width = inputs.shape[-2:]
    found = []
    for top, left, bottom, right in boxes.tolist():
        rows, columns = bottom - top, right - left
        y = int(torch.randint(height - rows + 1, (), generator=generator))
        x = int(torch.randint(width - columns + 1, (), generator=generator))
        found.append((y, x, y + rows, x + columns))
    return np.asarray(found, dtype=np.int64)
