"""Occlusion: what happens to the score when a grey square covers each place."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from attribkit.builtin._refinement import Limit, coarsest, refine
from attribkit.engine.incremental.spans import Spans
from attribkit.engine.occluded import Observer, Occluded
from attribkit.errors import InputError, InputTypeError, as_int, is_int
from attribkit.method import Method
from attribkit.targets import ClassTarget, Target

Size = int | tuple[int, int]
Pair = tuple[int, int]


class Occlusion(Method):
    """Occlusion sensitivity (Zeiler & Fergus 2014, §4.2).

    A patch of ``fill`` slides over the image. The map holds, per pixel, the mean over the windows that cover it of
    (clean score − occluded score), and 0 where none does; it is the same in every channel.
    """

    name = "occlusion"
    summary = "Score drop when a grey square covers each place (Zeiler & Fergus 2014)"
    source = "Zeiler & Fergus, Visualizing and Understanding Convolutional Networks, ECCV 2014, §4.2"
    tags = frozenset({"perturbation", "signed", "deterministic"})

    def attribute(  # type: ignore[override]
        self,
        model: nn.Module,
        inputs: Tensor,
        target: Target,
        *,
        window: Size | None = None,
        stride: Size | None = None,
        fill: float = 0.0,
        score: str = "logit",
        unit_layer: str | None = None,
        unit_channel: int | None = None,
        engine: str = "auto",
        max_batch_bytes: int | None = None,
        approximate: float | str | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the map [N, C, H, W] and, as extras, what the model said at each position.

        Parameters
        ----------
        model, inputs, target
            As for every `Method`.
        window
            Side of the square in pixels, or ``(height, width)``; default a seventh of the shorter side, rounded up. A
            window larger than the image is cut to it.
        stride
            Step in pixels, or ``(down, across)``; default half the window. Windows start at 0, stride, 2·stride, …
            until the image is covered, the last ones cut off at the border.
        fill
            Value of the square, in the inputs' own (normalised) units.
        score
            ``"logit"``: the target's score; ``"probability"``: its softmax probability (class targets only).
        unit_layer, unit_channel
            A feature map whose total activity is recorded at each position; without a channel each sample's most
            active one.
        engine
            ``"incremental"``: one clean forward pass, then of every feature map only the rectangle that a window
            changes; ``"full"``: the whole model for every window; ``"auto"``: incremental where the model allows it.
            Both give the same scores up to rounding, which is checked on some windows each time.
        max_batch_bytes
            About how much memory a batch of occluded images may take; default a quarter of what is free, at most
            512 MiB.
        approximate
            Look at fewer windows: as many as still cover every pixel first, then those between wherever the score
            changes. A number between 0 and 1: the error allowed, as a share of the largest drop; text such as
            ``"20s"``: the seconds to spend. Errors are estimates. None: every window.

        Returns
        -------
        values : Tensor [N, C, H, W]
        extras : dict
            ``score_map`` [N, rows, cols], the score by position (Fig. 6d); ``label_map`` [N, rows, cols], the most
            probable class by position (Fig. 6e); with ``unit_layer``, ``unit_map`` [N, rows, cols] (Fig. 6b);
            ``incremental`` [N], whether incremental inference found them. With ``approximate``, ``seen`` [N, rows,
            columns], which windows were looked at, and ``error_map``, the estimated error of ``score_map`` elsewhere.

        Raises
        ------
        InputError
            A window, stride or ``max_batch_bytes`` below 1, an unknown ``score`` or ``engine``, a unit out of range, or
            an ``approximate`` that is neither a share nor seconds.

        Warns
        -----
        IncrementalWarning
            ``engine="incremental"`` and the model does not allow it, or its results differed from the model's own; the
            model was run in full.
        """
        if engine not in ("auto", "incremental", "full"):
            raise InputError(f"occlusion engine must be 'auto', 'incremental' or 'full', got {engine!r}")
        if max_batch_bytes is not None and as_int("occlusion max_batch_bytes", max_batch_bytes) < 1:
            raise InputError(f"occlusion max_batch_bytes must be positive, got {max_batch_bytes}")
        if inputs.is_meta:
            raise InputError("inputs is on the meta device, where occluded scores have no values to compare")
        height, width = inputs.shape[-2:]
        sides, steps = _sides(height, width, window, stride)
        fill = _fill(fill)
        limit = None if approximate is None else Limit(approximate)
        if unit_layer is not None and not isinstance(unit_layer, str):
            raise InputTypeError(f"occlusion unit_layer must be the name of a layer, got {unit_layer!r}")
        if unit_channel is not None:
            unit_channel = as_int("occlusion unit_channel", unit_channel)
        if score not in ("logit", "probability"):
            raise InputError(f"occlusion score must be 'logit' or 'probability', got {score!r}")
        if score == "probability" and not isinstance(target, ClassTarget):
            raise InputError("occlusion score='probability' needs a class target")
        if unit_channel is not None and unit_layer is None:
            raise InputError(f"occlusion unit_channel={unit_channel} needs unit_layer")
        grid = windows(height, width, window, stride)
        occluded = Occluded(
            Observer(model, target, score, unit_layer, unit_channel), inputs, grid, fill, engine, max_batch_bytes
        )
        with torch.no_grad():
            occluded.clean()  # before any window is looked at: it says which unit is the most active
            more: dict[str, Tensor] = {}
            if limit is None:
                found = occluded.find()
            else:
                step = coarsest(sides, steps)
                found, more["error_map"], more["seen"] = refine(
                    occluded.find, lambda: occluded.clean()["score"], occluded.shape, step, limit
                )
            # only now: it is another one where a replay was given up
            drops = (occluded.clean()["score"][:, None, None] - found["score"]).to(inputs.dtype)
            values = spread(drops, grid, height, width)
        extras = {f"{key}_map": value for key, value in found.items()}
        extras |= more
        extras["incremental"] = torch.full((len(inputs),), occluded.incremental, device=inputs.device)
        return values[:, None].expand_as(inputs).clone(), extras


def windows(height: int, width: int, window: Size | None = None, stride: Size | None = None) -> tuple[Spans, Spans]:
    """Return where the windows lie on an image.

    Parameters
    ----------
    height, width
        The image's.
    window, stride
        The method's options.

    Returns
    -------
    tuple
        First rows and last rows plus one of the windows, first columns and last columns plus one.
    """
    sides, steps = _sides(height, width, window, stride)
    rows, columns = starts(height, sides[0], steps[0]), starts(width, sides[1], steps[1])
    return (
        (rows, [min(at + sides[0], height) for at in rows]),
        (columns, [min(at + sides[1], width) for at in columns]),
    )


def starts(size: int, window: int, stride: int) -> list[int]:
    """Return where windows start along one side of ``size`` pixels: 0, stride, … until it is covered."""
    found = [0]
    while found[-1] + window < size and found[-1] + stride < size:
        found.append(found[-1] + stride)
    return found


def spread(drops: Tensor, grid: tuple[Spans, Spans], height: int, width: int) -> Tensor:
    """Return per pixel the mean of the windows' drops [N, rows, columns] over the windows that cover it: [N, H, W]."""
    across, wide = drops.new_zeros(*drops.shape[:2], width), drops.new_zeros(width)
    for j, (left, right) in enumerate(zip(*grid[1], strict=True)):
        across[:, :, left:right] += drops[:, :, j, None]
        wide[left:right] += 1
    total, high = drops.new_zeros(len(drops), height, width), drops.new_zeros(height)
    for i, (top, bottom) in enumerate(zip(*grid[0], strict=True)):
        total[:, top:bottom] += across[:, i, None]
        high[top:bottom] += 1
    return total / (high[:, None] * wide).clamp(min=1)


def _sides(
    height: int, width: int, window: Size | None, stride: Size | None
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the windows' sides, no longer than the image's, and how far one is from the next."""
    square = (-(-min(height, width) // 7),) * 2
    sides = _pair("window", window) if window is not None else square
    sides = min(sides[0], height), min(sides[1], width)
    steps = _pair("stride", stride) if stride is not None else (max(1, sides[0] // 2), max(1, sides[1] // 2))
    return sides, steps


def _pair(what: str, value: Any) -> tuple[int, int]:
    pair = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(pair) != 2 or any(not is_int(v) or v < 1 for v in pair):
        raise InputError(f"occlusion {what} must be a positive int or a pair of them, got {value!r}")
    return int(pair[0]), int(pair[1])


def _fill(value: Any) -> float:
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        raise InputError(f"occlusion fill must be a finite number, got {value!r}")
    return float(value)
