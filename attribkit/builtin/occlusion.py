"""Occlusion: what happens to the score when a grey square covers each place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from attribkit import progress
from attribkit.engine.outputs import class_scores
from attribkit.engine.units import select
from attribkit.engine.walk import Walk
from attribkit.errors import InputError, InputTypeError, ModelError, as_int, is_int
from attribkit.method import Method
from attribkit.targets import ClassTarget, Target

#: How many occluded images go through the model at once.
ROWS = 32

Size = int | tuple[int, int]


class Occlusion(Method):
    """Occlusion sensitivity (Zeiler & Fergus 2014, §4.2).

    A patch of ``fill`` slides over the image. The map holds, per pixel, the mean over the windows that cover it of
    (clean score − occluded score), and 0 where none does; it is the same in every channel.
    """

    name = "occlusion"
    summary = "Score drop when a grey square covers each place (Zeiler & Fergus 2014)"
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

        Returns
        -------
        values : Tensor [N, C, H, W]
        extras : dict
            ``score_map`` [N, rows, cols], the score by position (Fig. 6d); ``label_map`` [N, rows, cols], the most
            probable class by position (Fig. 6e); with ``unit_layer``, ``unit_map`` [N, rows, cols] (Fig. 6b).

        Raises
        ------
        InputError
            A window or stride below 1, an unknown ``score``, or a unit out of range.
        """
        height, width = inputs.shape[-2:]
        sides = tuple(min(w, side) for w, side in zip(_window(window, height, width), (height, width), strict=True))
        steps = _pair("stride", stride) if stride is not None else tuple(max(1, side // 2) for side in sides)
        fill = _fill(fill)
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
        rows, columns = starts(height, sides[0], steps[0]), starts(width, sides[1], steps[1])
        boxes = [(y, min(y + sides[0], height), x, min(x + sides[1], width)) for y in rows for x in columns]

        observer = _Observer(model, target, score, unit_layer, unit_channel)
        everyone = torch.arange(len(inputs), device=inputs.device)
        with torch.no_grad():
            clean = observer.look(inputs.clone(), everyone, first=True)["score"]
            jobs = [(sample, box) for sample in range(len(inputs)) for box in range(len(boxes))]
            found: dict[str, list[Tensor]] = {}
            for start in progress.track(range(0, len(jobs), ROWS), "occlusion"):
                part = jobs[start : start + ROWS]
                index = torch.tensor([sample for sample, _ in part], device=inputs.device)
                occluded = inputs[index]
                for row, (_, box) in zip(occluded, part, strict=True):
                    top, bottom, left, right = boxes[box]
                    row[..., top:bottom, left:right] = fill
                for key, value in observer.look(occluded, index).items():
                    found.setdefault(key, []).append(value)
            shape = (len(inputs), len(rows), len(columns))
            maps = {key: torch.cat(values).reshape(shape) for key, values in found.items()}
            drops = (clean[:, None] - maps["score"].flatten(1)).to(inputs.dtype)
            values = spread(drops, boxes, height, width)
        extras = {f"{key}_map": value for key, value in maps.items()}
        return values[:, None].expand_as(inputs).clone(), extras


class _Observer:
    """Runs the model on a batch and notes the score, the most probable class and the feature map's activity."""

    def __init__(
        self, model: nn.Module, target: Target, score: str, unit_layer: str | None, unit_channel: int | None
    ) -> None:
        self.model = model
        self.target = target
        self.probability = score == "probability"
        self.unit_layer = unit_layer
        self.unit_channel = unit_channel
        self.channels: Tensor | None = None

    def look(self, x: Tensor, index: Tensor, *, first: bool = False) -> dict[str, Tensor]:
        target = self.target
        kwargs = target.kwargs_for(index)
        walk = None
        if target.layer is None and self.unit_layer is None:
            output = target.observe(self.model, x, index)
        else:
            walk = Walk(self.model, layers=[target.layer, self.unit_layer])
            output = walk.run(x, **kwargs)
        observed = output if target.layer is None or walk is None else walk.catch(target.layer)
        found = {"score": target.read(observed, index)}
        try:
            logits = class_scores(output)
        except ModelError:
            pass  # dense outputs have no class of their own
        else:
            found["label"] = logits.argmax(1)
            if self.probability and isinstance(target, ClassTarget):
                found["score"] = target.read(logits.softmax(1), index)
        if walk is not None and self.unit_layer is not None:
            captured = walk.catch(self.unit_layer)
            if captured.layout is None:
                raise InputError(f"occlusion unit_layer {self.unit_layer!r}: its feature dimension is not known")
            found["unit"] = self._activity(captured.value, captured.layout, index, first)
        return found

    def _activity(self, value: Tensor, layout: str, index: Tensor, first: bool) -> Tensor:
        channels = value.shape[layout.index("C")]
        totals = value.movedim(layout.index("C"), 1).flatten(2).sum(2) if value.ndim > 2 else value
        if first:
            if self.unit_channel is not None and not 0 <= self.unit_channel < channels:
                raise InputError(
                    f"unit_channel {self.unit_channel} is out of range: {self.unit_layer!r} has {channels} channels"
                )
            self.channels = totals.argmax(1)
        if self.unit_channel is not None or self.channels is None:
            return select(value, self.unit_channel or 0, layout).sum(1)
        return totals.gather(1, self.channels[index.to(self.channels.device)][:, None])[:, 0]


def starts(size: int, window: int, stride: int) -> list[int]:
    """Return where windows start along one side of ``size`` pixels: 0, stride, … until it is covered."""
    found = [0]
    while found[-1] + window < size and found[-1] + stride < size:
        found.append(found[-1] + stride)
    return found


def spread(drops: Tensor, boxes: Sequence[tuple[int, int, int, int]], height: int, width: int) -> Tensor:
    """Return per pixel the mean of the windows' drops [N, windows] over the windows that cover it: [N, H, W]."""
    total = drops.new_zeros(len(drops), height, width)
    count = drops.new_zeros(height, width)
    for i, (top, bottom, left, right) in enumerate(boxes):
        total[:, top:bottom, left:right] += drops[:, i, None, None]
        count[top:bottom, left:right] += 1
    return total / count.clamp(min=1)


def _window(window: Size | None, height: int, width: int) -> tuple[int, int]:
    if window is None:
        side = -(-min(height, width) // 7)
        return side, side
    return _pair("window", window)


def _pair(what: str, value: Any) -> tuple[int, int]:
    pair = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(pair) != 2 or any(not is_int(v) or v < 1 for v in pair):
        raise InputError(f"occlusion {what} must be a positive int or a pair of them, got {value!r}")
    return int(pair[0]), int(pair[1])


def _fill(value: Any) -> float:
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        raise InputError(f"occlusion fill must be a finite number, got {value!r}")
    return float(value)
