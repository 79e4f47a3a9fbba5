"""Mining: one pass over a data set for each feature map's strongest activations."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from attribkit import progress as bars
from attribkit._version import __version__
from attribkit.attribution import weights_hash
from attribkit.checks import explain_channels, usable_model
from attribkit.datasets import ImageSource, open_images
from attribkit.engine.invert import vocabulary
from attribkit.engine.state import pristine
from attribkit.engine.units import token_grid
from attribkit.engine.walk import Capture, Walk
from attribkit.errors import ImageError, InputError, ModelError, as_int
from attribkit.features._topk import Top, strongest_of
from attribkit.features.mined import Mined, MinedLayer, Progress

if TYPE_CHECKING:
    from PIL import Image

    from attribkit.models.loading import LoadedModel

COMPUTE_BATCH = 16
"""How many images go through the model at once, whatever the batch size: see `mine`."""

SAVE_SECONDS = 5.0
"""How often the state is written."""

Channels = str | Sequence[int] | dict[str, Sequence[int]]


def mine(
    model: nn.Module | LoadedModel,
    source: ImageSource | str | os.PathLike[str],
    layers: Sequence[str],
    *,
    channels: Channels = "all",
    top: int = 9,
    batch_size: int = 64,
    preprocess: Callable[[Image.Image], Tensor] | None = None,
    workers: int = 0,
    state: str | os.PathLike[str] | None = None,
    name: str | None = None,
    compute_batch: int = COMPUTE_BATCH,
    progress: bool = False,
) -> Mined:
    """Find, for each feature map of some layers, the strongest activations over a data set (paper §4, Fig. 2).

    An image counts once for a map: at its strongest position, the first in row order on ties. Among images of equal
    activation the earlier one comes first.

    Images go through the model in chunks of ``compute_batch`` that lie fixed on the data set (0 to 15, 16 to 31, …;
    the last is filled up with zeros), because a sum's last bit can depend on the shape of a batch. So neither
    ``batch_size`` nor the number of processes nor an interruption changes anything in the result.

    Where ``torch.distributed`` is initialised, its processes share the chunks; every one gets the whole result.

    Parameters
    ----------
    model
        A torch module, or what `attribkit.load_model` returned; it runs in eval mode on its device.
    source
        The images: see `attribkit.datasets.open_images`.
    layers
        Module calls or sites, as for `attribkit.Unit`.
    channels
        ``"all"``, the feature maps to look at in every layer, or a dict of them by layer.
    top
        How many activations to keep for each map.
    batch_size
        How many images are loaded at a time (by one worker).
    preprocess
        Takes a PIL image to the input [C, H, W], the same shape for all; None: the loaded model's.
    workers
        Processes that load images beside this one.
    state
        A folder in which to note how far it has come, every few seconds: the same call goes on from there, after an
        interruption of any kind. It must exist.
    name
        What the state calls the model; None: its class.
    compute_batch
        How many images go through the model at once.
    progress
        Whether to show a progress bar.

    Returns
    -------
    Mined
        An image that cannot be read, or that gives activations that are not numbers, is left out and listed.

    Raises
    ------
    InputError
        A layer or channel is not there, a number is out of range, or the state is of another configuration.
    ModelError
        Not one image could be used.
    """
    network, preprocess = _model_and_preprocess(model, preprocess)
    images = source if isinstance(source, ImageSource) else open_images(source)
    if isinstance(layers, str) or not layers:
        raise InputError(f"layers must be a list of at least one layer's name, got {layers!r}")
    for what, number, least in (
        ("top", top, 1),
        ("batch_size", batch_size, 1),
        ("compute_batch", compute_batch, 1),
        ("workers", workers, 0),
    ):
        if as_int(what, number) < least:
            raise InputError(f"{what} must be at least {least}, got {number}")
    layers = list(dict.fromkeys(layers))
    config = _config(network, images, layers, channels, top, compute_batch, name)
    miner = _Miner(network, layers, channels, top, compute_batch)
    ranks = _Ranks.current()
    chunks = -(-len(images) // compute_batch)
    begun = Progress(torch.zeros(chunks, dtype=torch.bool))
    folder = Path(state) if state is not None else None
    if folder is not None:
        for path in sorted(folder.glob("state-*.safetensors")):
            earlier, theirs = Progress.load(path)
            if bool(earlier.done.any()):
                _check_same(theirs, config, path)
                begun.merge(earlier)
        ranks.wait()  # every process has read before one writes
        if ranks.rank == 0 and bool(begun.done.any()):
            begun.save(folder / "state-0.safetensors", config)
        ranks.wait()
    todo = (~begun.done).nonzero()[:, 0].tolist()[ranks.rank :: ranks.count]
    mine_ = begun if ranks.rank == 0 else Progress(torch.zeros_like(begun.done))
    # the first process counts what is left to it
    with bars.shown(progress and ranks.rank == 0, "mining"):
        loaded = _chunks(images, todo, compute_batch, preprocess, batch_size, workers)
        _mine_chunks(miner, loaded, len(todo), mine_, folder, ranks, config)
    whole = ranks.together(mine_)
    if not whole.layers:
        reason = next(iter(whole.skipped.values()), "there are none")
        raise ModelError(f"{images.name}: not one of its {len(images)} images could be used: {reason}")
    ordered = {layer: whole.layers[layer] for layer in layers}
    return Mined(ordered, tuple(images.ids), tuple(sorted(whole.skipped.items())), config)


def _mine_chunks(
    miner: _Miner,
    loaded: Iterator[tuple[int, list[tuple[int, Tensor | str]]]],
    count: int,
    found: Progress,
    folder: Path | None,
    ranks: _Ranks,
    config: dict[str, Any],
) -> None:
    path = folder / f"state-{ranks.rank}.safetensors" if folder is not None else None
    saved = time.monotonic()
    try:
        for chunk, items in bars.track(loaded, "mining", total=count):
            part = Progress(torch.zeros_like(found.done))
            part.done[chunk] = True
            miner.chunk(items, part)
            found.merge(part)
            if path is not None and time.monotonic() - saved >= SAVE_SECONDS:
                found.save(path, config)
                saved = time.monotonic()
    finally:
        # on Ctrl-C too; a run that failed at once must not stand in the way of the right one
        if path is not None and bool(found.done.any()):
            found.save(path, config)


class _Miner:
    """Runs the model on one chunk after the other and keeps each map's strongest activations."""

    def __init__(self, model: nn.Module, layers: list[str], channels: Channels, top: int, size: int) -> None:
        self.model, self.layers, self.top, self.size = model, layers, top, size
        self.channels = channels if isinstance(channels, dict) else dict.fromkeys(layers, channels)
        like = next((t for t in model.parameters() if t.is_floating_point()), torch.zeros(()))
        self.device, self.dtype = like.device, like.dtype
        self.shape: torch.Size | None = None

    def chunk(self, items: list[tuple[int, Tensor | str]], into: Progress) -> None:
        """Mine one chunk's images; those without a tensor hold the reason why."""
        good = [(row, index, image) for row, (index, image) in enumerate(items) if isinstance(image, Tensor)]
        into.skipped.update({index: image for index, image in items if isinstance(image, str)})
        if not good:
            return
        self.shape = good[0][2].shape if self.shape is None else self.shape
        batch = torch.zeros(self.size, *self.shape, dtype=self.dtype)
        for row, index, image in good:
            if image.shape != self.shape:
                raise InputError(
                    f"image {index}: preprocess returned {tuple(image.shape)}, and {tuple(self.shape)} before"
                )
            batch[row] = image
        captured = self._run(batch.to(self.device))
        rows = torch.tensor([row for row, _, _ in good])
        indices = torch.tensor([index for _, index, _ in good])
        found = {layer: self._strongest(captured[layer], rows) for layer in self.layers}
        wrong = torch.stack([values.isnan().any(1) for _, _, values, _ in found.values()]).any(0)
        into.skipped.update({int(i): "its activations are not numbers" for i in indices[wrong]})
        if bool(wrong.all()):
            return
        for layer, (chosen, capture, values, positions) in found.items():
            grid = token_grid(capture.value, str(capture.layout), self.model, capture.image)
            seen = Top(
                values[~wrong].T.contiguous(),
                indices[~wrong].expand(len(chosen), -1),
                positions[~wrong].T.contiguous(),
            )
            best = Top.empty(len(chosen), self.top, values.dtype).merged(seen)
            into.layers[layer] = MinedLayer(layer, str(capture.layout), chosen, grid, best)

    def _run(self, batch: Tensor) -> dict[str, Capture]:
        with pristine(self.model, batch), explain_channels(self.model, batch), torch.no_grad():
            walk = Walk(self.model, vocabulary=vocabulary(), layers=self.layers, stop=True)
            walk.run(batch.clone())
            return {layer: walk.catch(layer) for layer in self.layers}

    def _strongest(self, captured: Capture, rows: Tensor) -> tuple[tuple[int, ...], Capture, Tensor, Tensor]:
        value, layout = captured.value, captured.layout
        if layout is None or len(layout) != value.ndim or len(value) != self.size:
            raise InputError(
                f"layer {captured.name!r} has output {tuple(value.shape)} for {self.size} images: "
                "its samples or its feature dimension are not known"
            )
        maps = value.movedim(layout.index("C"), 1).flatten(2) if value.ndim > 2 else value[..., None]
        chosen = self._chosen(captured.name, maps.shape[1])
        if len(chosen) < maps.shape[1]:
            maps = maps[:, list(chosen)]
        values, positions = strongest_of(maps)
        return chosen, captured, values[rows], positions[rows]

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


@dataclass
class _Images(torch.utils.data.Dataset[tuple[int, Any]]):
    """An image of the source as the model takes it, or the reason why there is none."""

    source: ImageSource
    preprocess: Callable[[Image.Image], Tensor]

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[int, Any]:
        try:
            return index, self.preprocess(self.source.load(index))
        except ImageError as error:
            return index, str(error)


def _same(items: list[tuple[int, Any]]) -> list[tuple[int, Any]]:
    return items


def _ignore_interrupts(worker: int) -> None:
    # Ctrl-C reaches every process of the terminal: the parent ends its workers
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _chunks(
    source: ImageSource, todo: list[int], size: int, preprocess: Any, batch_size: int, workers: int
) -> Iterator[tuple[int, list[tuple[int, Tensor | str]]]]:
    """Load the images of each chunk."""
    order = [i for chunk in todo for i in range(chunk * size, min((chunk + 1) * size, len(source)))]
    loader = torch.utils.data.DataLoader(
        _Images(source, preprocess),
        batch_size=batch_size,
        sampler=order,
        num_workers=workers,
        collate_fn=_same,
        worker_init_fn=_ignore_interrupts if workers else None,
        generator=torch.Generator().manual_seed(0),  # it draws a seed for its workers: not from the caller's numbers
    )
    waiting: list[tuple[int, Any]] = []
    for items in loader:
        for item in items:
            waiting.append(item)
            chunk = item[0] // size
            if item[0] == min((chunk + 1) * size, len(source)) - 1:
                yield chunk, waiting
                waiting = []


@dataclass(frozen=True)
class _Ranks:
    """The processes that share the work."""

    rank: int = 0
    count: int = 1

    @classmethod
    def current(cls) -> _Ranks:
        distributed = torch.distributed
        if not distributed.is_available() or not distributed.is_initialized():
            return cls()
        return cls(distributed.get_rank(), distributed.get_world_size())

    def wait(self) -> None:
        if self.count > 1:
            torch.distributed.barrier()

    def together(self, own: Progress) -> Progress:
        """Return what all processes found."""
        if self.count == 1:
            return own
        parts: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(parts, own)
        whole = Progress(torch.zeros_like(own.done))
        for part in parts:
            whole.merge(part)
        return whole


@contextlib.contextmanager
def processes() -> Iterator[int]:
    """Join the processes that ``torchrun`` started, where it did; give this one's rank."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or torch.distributed.is_initialized():
        yield _Ranks.current().rank
        return
    torch.distributed.init_process_group("gloo")
    try:
        yield torch.distributed.get_rank()
    finally:
        torch.distributed.destroy_process_group()


def _model_and_preprocess(model: Any, preprocess: Any) -> tuple[nn.Module, Any]:
    if not isinstance(model, nn.Module) and hasattr(model, "preprocess"):
        preprocess = preprocess if preprocess is not None else model.preprocess
        model = model.model
    if preprocess is None:
        raise InputError("preprocess is needed with a bare model: a function from a PIL image to a tensor [C, H, W]")
    return usable_model(model), preprocess


def _config(
    model: nn.Module, source: ImageSource, layers: list[str], channels: Any, top: int, size: int, name: str | None
) -> dict[str, Any]:
    """Return what makes two runs the same."""
    ids = hashlib.sha256("\0".join(source.ids).encode("utf-8", "surrogatepass")).hexdigest()
    like = next((t for t in model.parameters() if t.is_floating_point()), torch.zeros(()))
    plain = {k: list(v) for k, v in channels.items()} if isinstance(channels, dict) else channels
    return {
        "model": name or type(model).__name__,
        "weights": weights_hash(model),
        "data": source.name,
        "images": len(source),
        "ids": ids,
        "layers": layers,
        "channels": plain if isinstance(plain, (str, dict)) else list(plain),
        "top": top,
        "compute_batch": size,
        "dtype": str(like.dtype),
        "device": like.device.type,
        "attribkit": __version__,
        "torch": torch.__version__,
    }


def _check_same(theirs: dict[str, Any], ours: dict[str, Any], path: Path) -> None:
    """Raise `InputError` that names how a state's configuration differs."""
    for key in {**theirs, **ours}:
        if theirs.get(key) != ours.get(key):
            was, now = (_short(config.get(key)) for config in (theirs, ours))
            raise InputError(
                f"{str(path.parent)!r} holds the state of another run: {key} was {was} and is {now}; "
                "give another folder, or remove that one to begin anew"
            )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
