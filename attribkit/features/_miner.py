"""One chunk of images through the model: each map's strongest activations, or for an image the reason why not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from attribkit.checks import explain_misfits
from attribkit.engine.frames import Capture
from attribkit.engine.invert import vocabulary
from attribkit.engine.state import pristine
from attribkit.engine.units import token_grid
from attribkit.engine.walk import Walk
from attribkit.errors import AttribkitError, InputError, as_int
from attribkit.features._topk import Top, strongest_of
from attribkit.features.mined import MinedLayer, Progress
from attribkit.runs.computing import check_device, free_memory, is_out_of_memory, reason_of

Channels = str | Sequence[int] | dict[str, Sequence[int]]

_Found = dict[str, tuple[MinedLayer, Tensor, Tensor]]
"""By layer: how it is counted, with free places alone, and the values and positions [B, K] of the images."""


class Miner:
    """Runs the model on one chunk after the other and keeps each map's strongest activations.

    Parameters
    ----------
    model
        The model, on its device.
    layers, channels, top
        As for `mine`.
    size
        How many images are a chunk.
    proven
        Whether some images were mined in this way already: an error then concerns the images it is raised on alone.
    """

    def __init__(
        self, model: nn.Module, layers: list[str], channels: Channels, top: int, size: int, proven: bool = False
    ) -> None:
        self.model, self.layers, self.top, self.size, self.proven = model, layers, top, size, proven
        self.channels = channels if isinstance(channels, dict) else dict.fromkeys(layers, channels)
        like = next((t for t in model.parameters() if t.is_floating_point()), torch.zeros(()))
        self.device, self.dtype = like.device, like.dtype
        self.shape: torch.Size | None = None

    def chunk(self, first: int, items: Sequence[Tensor | str], into: Progress) -> None:
        """Mine a chunk's images, of which the first is number ``first``; those without a tensor hold the reason why.

        Raises
        ------
        Exception
            What is wrong for every image, at the first chunk: a layer that is not called, a model that takes no such
            inputs.
        """
        into.skipped.update({first + row: item for row, item in enumerate(items) if isinstance(item, str)})
        good = {row: item for row, item in enumerate(items) if isinstance(item, Tensor)}
        for row, image in good.items():
            self.shape = image.shape if self.shape is None else self.shape
            if image.shape != self.shape:
                raise InputError(
                    f"image {first + row}: preprocess returned {tuple(image.shape)}, and {tuple(self.shape)} before"
                )
        raised: list[Exception] = []
        for rows, found in self._pieces(good, self.size) if good else ():
            indices = torch.tensor(rows) + first
            if isinstance(found, Exception):
                raised.append(found)
                into.skipped.update(dict.fromkeys(indices.tolist(), reason_of(found)))
            else:
                into.merge(self._kept(indices, found, torch.zeros_like(into.done)))
                self.proven = True
        if raised and not self.proven and not any(is_out_of_memory(error) for error in raised):
            raise raised[0]

    def _pieces(self, images: dict[int, Tensor], size: int) -> Iterator[tuple[list[int], _Found | Exception]]:
        """Yield rows with what was found in them, or with what their image, alone, raised.

        What there is no memory for is computed in halves. Where the model raises anything else, each image is computed
        without the others, at its own place in a batch of the same size: so those that are sound keep their last bit.
        """
        memory = False
        try:
            yield list(images), self._forward(images, size)
            return
        except Exception as error:
            memory = is_out_of_memory(error)
            if not memory:
                check_device(self.device, error)
                if isinstance(error, AttribkitError) and not self.proven:
                    raise
            raised = error
        if memory or self.proven:
            # the traceback would keep the tensors alive that there was no room for
            raised = raised.with_traceback(None)
            raised.__context__ = raised.__cause__ = None
        if (size == 1) if memory else (len(images) == 1):
            yield list(images), raised
            return
        del raised
        if not memory:
            for row, image in images.items():
                yield from self._pieces({row: image}, size)
            return
        free_memory(self.device)
        half = (size + 1) // 2
        for first in (0, half):
            part = {row - first: image for row, image in images.items() if first <= row < first + half}
            for rows, found in self._pieces(part, half) if part else ():
                yield [first + row for row in rows], found

    def _forward(self, images: dict[int, Tensor], size: int) -> _Found:
        assert self.shape is not None
        batch = torch.zeros(size, *self.shape, dtype=self.dtype)
        for row, image in images.items():
            batch[row] = image
        batch = batch.to(self.device)
        with pristine(self.model, batch), explain_misfits(self.model, batch), torch.no_grad():
            walk = Walk(self.model, vocabulary=vocabulary(), layers=self.layers, stop=True)
            walk.run(batch.clone())
            captured = {layer: walk.catch(layer) for layer in self.layers}
        rows = torch.tensor(list(images))
        return {layer: self._strongest(layer, captured[layer], rows, size) for layer in self.layers}

    def _strongest(self, layer: str, captured: Capture, rows: Tensor, size: int) -> tuple[MinedLayer, Tensor, Tensor]:
        value, layout = captured.value, captured.layout
        if layout is None or len(layout) != value.ndim or len(value) != size:
            raise InputError(
                f"layer {captured.name!r} has output {tuple(value.shape)} for {size} images: "
                "its samples or its feature dimension are not known"
            )
        maps = value.movedim(layout.index("C"), 1).flatten(2) if value.ndim > 2 else value[..., None]
        chosen = self._chosen(captured.name, maps.shape[1])
        if len(chosen) < maps.shape[1]:
            maps = maps[:, list(chosen)]
        values, positions = strongest_of(maps)
        grid = token_grid(value, str(layout), self.model, captured.image)
        empty = Top.empty(len(chosen), self.top, values.dtype)
        return MinedLayer(layer, str(layout), chosen, grid, empty), values[rows], positions[rows]

    def _kept(self, indices: Tensor, found: _Found, done: Tensor) -> Progress:
        """Return what some images give to the strongest of each map; one with a NaN anywhere gives nothing."""
        kept = Progress(done)
        wrong = torch.zeros(len(indices), dtype=torch.bool)
        for layer, (_, values, _) in found.items():
            # a maximum is NaN where anything is; an infinite one tells of an overflow and has no order
            bad = ~values.isfinite().all(1)
            for index in indices[bad & ~wrong].tolist():
                kept.skipped[index] = f"the activations of layer {layer!r} hold NaN or infinite values"
            wrong |= bad
        if bool(wrong.all()):
            return kept
        for layer, (empty, values, positions) in found.items():
            seen = Top(
                values[~wrong].T.contiguous(),
                indices[~wrong].expand(values.shape[1], -1),
                positions[~wrong].T.contiguous(),
            )
            best = empty.top.merged(seen)
            kept.layers[layer] = MinedLayer(layer, empty.layout, empty.channels, empty.grid, best)
        return kept

    def _chosen(self, layer: str, count: int) -> tuple[int, ...]:
        channels = self.channels.get(layer, "all")
        if isinstance(channels, str):
            if channels != "all":
                raise InputError(f"channels must be 'all' or a list of ints, got {channels!r}")
            return tuple(range(count))
        chosen = tuple(dict.fromkeys(as_int("each of channels", channel) for channel in channels))
        wrong = next((channel for channel in chosen if not 0 <= channel < count), None)
        if wrong is not None or not chosen:
            raise InputError(
                f"channel {wrong} is out of range: layer {layer!r} has {count} channels (0 to {count - 1})"
                if chosen
                else "channels is empty: give at least one"
            )
        return chosen
