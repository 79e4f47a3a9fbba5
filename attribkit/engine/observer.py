"""What is noted of a model's output for occluded images."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from attribkit.engine.frames import Capture
from attribkit.engine.outputs import class_scores
from attribkit.engine.units import select
from attribkit.engine.walk import Walk
from attribkit.errors import InputError, ModelError
from attribkit.targets import ClassTarget, Target

Returned = tuple[Any, dict[str, Tensor]]  # the model's output, and the layers' by name


class Observer:
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
        self.bytes_per_batch = 0
        self.forward_kwargs = target.forward_kwargs
        self._first: dict[str, Capture] = {}

    def look(self, x: Tensor, index: Tensor, *, first: bool = False) -> dict[str, Tensor]:
        """Run the model and return, by name, what is noted of every row."""
        return self.found(self.measure(x, index) if first else self.forward(x, index), index, first=first)

    def measure(self, x: Tensor, index: Tensor) -> Returned:
        """Do what `forward` does and note how much memory a row takes, and how much is read once for a batch."""
        with _Sizes() as sizes:
            returned = self.forward(x, index)
        # an output beside the inputs it is made of, and what the operation needs itself
        self.bytes_per_row = 4 * sizes.largest // max(1, len(x))
        self.bytes_per_batch = sizes.weights
        return returned

    def forward(self, x: Tensor, index: Tensor) -> Returned:
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

    def found(self, returned: Returned, index: Tensor, *, first: bool = False) -> dict[str, Tensor]:
        """Return, by name, what is noted of every row of what `forward` returned."""
        (output, captured), target = returned, self.target
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


class _Sizes(TorchFunctionMode):
    """Notes how large the largest tensor is that a function returns, and the weights that every row takes once."""

    largest = 0
    weights = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        with torch._C.DisableTorchFunction():
            for tensor in (output,) if isinstance(output, Tensor) else tree_leaves(output):
                if isinstance(tensor, Tensor):
                    self.largest = max(self.largest, tensor.numel() * tensor.element_size())
            if func is F.linear and len(args) > 1 and args[0].ndim == 2:
                self.weights += args[1].numel() * args[1].element_size()
        return output
