"""Occlusion: what happens to the score when a grey square covers each place."""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from attribkit import progress
from attribkit.engine.incremental import CACHE, TORCHS_OWN, Incremental, NotReplayable
from attribkit.engine.outputs import class_scores
from attribkit.engine.units import select
from attribkit.engine.walk import Capture, Walk
from attribkit.errors import InputError, InputTypeError, ModelError, as_int, is_int
from attribkit.method import Method
from attribkit.targets import ClassTarget, Target

#: The most occluded images that go through the model at once; more gain nothing and leave the caches.
ROWS = 32

#: Memory for a batch where the machine does not say how much is free, and the most that is taken unasked.
BATCH_BYTES = 1 << 29

#: From how many times fewer multiplications on incremental inference is taken unasked, if no batch norm is folded.
WORTH = 1.05

Size = int | tuple[int, int]

log = logging.getLogger(__name__)


class IncrementalWarning(UserWarning):
    """Incremental inference was asked for, or was under way, and the model was run in full instead."""


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
        engine: str = "full",
        max_batch_bytes: int | None = None,
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

        Returns
        -------
        values : Tensor [N, C, H, W]
        extras : dict
            ``score_map`` [N, rows, cols], the score by position (Fig. 6d); ``label_map`` [N, rows, cols], the most
            probable class by position (Fig. 6e); with ``unit_layer``, ``unit_map`` [N, rows, cols] (Fig. 6b);
            ``incremental`` [N], whether incremental inference found them.

        Raises
        ------
        InputError
            A window, stride or ``max_batch_bytes`` below 1, an unknown ``score`` or ``engine``, or a unit out of range.

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
        grid = tuple(
            (at, [min(start + side, length) for start in at])
            for at, side, length in zip((rows, columns), sides, (height, width), strict=True)
        )
        boxes = [(t, b, le, r) for t, b in zip(*grid[0], strict=True) for le, r in zip(*grid[1], strict=True)]

        observer = _Observer(model, target, score, unit_layer, unit_channel)
        run = _Run(observer, inputs, boxes, (grid[0], grid[1]), fill, max_batch_bytes or _free_bytes(inputs.device))
        with torch.no_grad():
            clean = observer.look(inputs.clone(), torch.arange(len(inputs), device=inputs.device), first=True)["score"]
            found = run.incremental(engine) if engine != "full" else None
            incremental = found is not None
            if found is None:
                found = run.full()
            shape = (len(inputs), len(rows), len(columns))
            maps = {key: value.reshape(shape) for key, value in found.items()}
            drops = (clean[:, None] - maps["score"].flatten(1)).to(inputs.dtype)
            values = spread(drops, boxes, height, width)
        extras = {f"{key}_map": value for key, value in maps.items()}
        extras["incremental"] = torch.full((len(inputs),), incremental, device=inputs.device)
        return values[:, None].expand_as(inputs).clone(), extras


class _Run:
    """The scores at every position of every image, by either engine."""

    def __init__(
        self,
        observer: _Observer,
        inputs: Tensor,
        boxes: Sequence[tuple[int, int, int, int]],
        grid: tuple[tuple[list[int], list[int]], tuple[list[int], list[int]]],
        fill: float,
        max_bytes: int,
    ) -> None:
        self.observer, self.inputs, self.boxes = observer, inputs, boxes
        self.grid, self.fill, self.max_bytes = grid, fill, max_bytes

    def full(self) -> dict[str, Tensor]:
        """Run the model on every occluded image."""
        inputs, boxes = self.inputs, self.boxes
        jobs = [(sample, box) for sample in range(len(inputs)) for box in range(len(boxes))]
        most = self.max_bytes if inputs.device.type != "cpu" else min(self.max_bytes, 4 * CACHE)
        rows = max(1, min(ROWS, len(jobs), most // max(1, self.observer.bytes_per_row)))
        buffer = inputs.new_empty(rows, *inputs.shape[1:])
        found: dict[str, list[Tensor]] = {}
        for start in progress.track(range(0, len(jobs), rows), "occlusion"):
            part = jobs[start : start + rows]
            index = torch.tensor([sample for sample, _ in part], device=inputs.device)
            occluded = torch.index_select(inputs, 0, index, out=buffer[: len(part)])
            for row, (_, box) in zip(occluded, part, strict=True):
                top, bottom, left, right = boxes[box]
                row[..., top:bottom, left:right] = self.fill
            for key, value in self.observer.look(occluded, index).items():
                found.setdefault(key, []).append(value)
        return {key: torch.cat(values) for key, values in found.items()}

    def incremental(self, engine: str) -> dict[str, Tensor] | None:
        """Run only what every window changes; None where the model does not allow it."""
        try:
            return self._incremental(engine)
        except NotReplayable as reason:
            why = str(reason)
        except Exception as error:
            if type(error) not in TORCHS_OWN or hasattr(error, "attribkit_origin"):
                raise
            # a replay that torch refuses; if the model itself is at fault, running it in full shows it
            why = f"{type(error).__name__}: {error}".splitlines()[0]
        message = f"occlusion runs the model in full: {why}"
        log.info(message)
        if engine == "incremental" or "differ" in why:
            warnings.warn(message, IncrementalWarning, stacklevel=4)
        return None

    def _incremental(self, wanted: str) -> dict[str, Tensor]:
        inputs, observer = self.inputs, self.observer
        width = len(self.grid[1][0])
        if any(isinstance(v, Tensor) and v.ndim and len(v) == len(inputs) for v in observer.forward_kwargs.values()):
            raise NotReplayable("forward_kwargs differ from sample to sample")
        if len(self.boxes) < 8:
            raise NotReplayable("there are too few windows for it to pay")
        first = torch.zeros(1, dtype=torch.long, device=inputs.device)

        def forward(rows: Tensor) -> Any:
            return observer.forward(rows, first.expand(len(rows)))

        engine = Incremental(forward, inputs[:1], self.grid, self.fill, self.max_bytes)
        if wanted == "auto" and engine.plan.gain() < WORTH and not engine.plan.folds():
            raise NotReplayable("a window changes nearly all of every feature map")
        blocks = engine.blocks()
        found: dict[str, Tensor] = {}
        for sample, (block, places, returned) in progress.track(
            self._blocks(engine, blocks), "occlusion", total=len(inputs) * len(blocks)
        ):
            del block
            if not places:
                continue
            index = torch.full((len(places),), sample, dtype=torch.long, device=inputs.device)
            at = torch.tensor([y * width + x for y, x in places], device=inputs.device)
            output, captured = returned
            for key, value in observer.found(output, captured, index).items():
                if key not in found:
                    found[key] = value.new_zeros(len(inputs), len(self.boxes))
                found[key][sample, at] = value
        return found

    def _blocks(self, engine: Incremental, blocks: list[Any]) -> Iterator[tuple[int, tuple[int, Any, Any]]]:
        for sample in range(len(self.inputs)):
            clean = engine.clean(self.inputs[sample : sample + 1]) if sample else None
            for number, (places, returned) in enumerate(engine.run(clean, blocks)):
                yield sample, (number, places, returned)


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
        self.bytes_per_row = 0
        self.forward_kwargs = target.forward_kwargs
        self._first: dict[str, Capture] = {}

    def look(self, x: Tensor, index: Tensor, *, first: bool = False) -> dict[str, Tensor]:
        """Run the model and return, by name, what is noted of every row."""
        if first:
            with _Largest() as largest:
                output, captured = self.forward(x, index)
            # an output beside the inputs it is made of, and what the operation needs itself
            self.bytes_per_row = 4 * largest.bytes // max(1, len(x))
        else:
            output, captured = self.forward(x, index)
        return self.found(output, captured, index, first=first)

    def forward(self, x: Tensor, index: Tensor) -> tuple[Any, dict[str, Tensor]]:
        """Run the model and return its output and the layers' that are needed."""
        target = self.target
        wanted = [layer for layer in (target.layer, self.unit_layer) if layer is not None]
        if not wanted:
            return target.observe(self.model, x, index), {}
        walk = Walk(self.model, layers=wanted)
        output = walk.run(x, **target.kwargs_for(index))
        for layer in wanted:
            self._first.setdefault(layer, walk.catch(layer))
        return output, {layer: walk.catch(layer).value for layer in wanted}

    def found(
        self, output: Any, captured: dict[str, Tensor], index: Tensor, *, first: bool = False
    ) -> dict[str, Tensor]:
        """Return, by name, what is noted of every row of what `forward` returned."""
        target = self.target
        layer = target.layer
        observed = output if layer is None else replace(self._first[layer], value=captured[layer])
        found = {"score": target.read(observed, index)}
        try:
            logits = class_scores(output)
        except ModelError:
            pass  # dense outputs have no class of their own
        else:
            found["label"] = logits.argmax(1)
            if self.probability and isinstance(target, ClassTarget):
                found["score"] = target.read(logits.softmax(1), index)
        if self.unit_layer is not None:
            layout = self._first[self.unit_layer].layout
            if layout is None:
                raise InputError(f"occlusion unit_layer {self.unit_layer!r}: its feature dimension is not known")
            found["unit"] = self._activity(captured[self.unit_layer], layout, index, first)
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


class _Largest(TorchFunctionMode):
    """Notes how large the largest tensor is that a function returns."""

    bytes = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for tensor in (output,) if isinstance(output, Tensor) else tree_leaves(output):
            if isinstance(tensor, Tensor):
                with torch._C.DisableTorchFunction():
                    self.bytes = max(self.bytes, tensor.numel() * tensor.element_size())
        return output


def _free_bytes(device: torch.device) -> int:
    """Return a quarter of the memory that is free, at most `BATCH_BYTES`."""
    free = 4 * BATCH_BYTES
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    elif hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(1 << 24, min(free // 4, BATCH_BYTES))


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
