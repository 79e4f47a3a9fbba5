"""Mining: one pass over a data set for each feature map's strongest activations."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from attribkit import progress as bars
from attribkit._version import __version__
from attribkit.attribution import weights_hash
from attribkit.checks import usable_model
from attribkit.datasets import ImageSource, open_images
from attribkit.errors import InputError, ModelError, as_int
from attribkit.features._miner import Channels, Miner
from attribkit.features.mined import Mined, Progress
from attribkit.runs.loading import load_batches
from attribkit.runs.ranks import joined, ranks
from attribkit.store.errors import StoreError
from attribkit.store.folder import writing
from attribkit.store.index import Batch
from attribkit.store.layout import Place

if TYPE_CHECKING:
    from PIL import Image

    from attribkit.models.loading import LoadedModel

COMPUTE_BATCH = 16
"""How many images go through the model at once, whatever the batch size: see `mine`."""

SAVE_SECONDS = 5.0
"""How often the state is written."""


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
    retry: bool = False,
    progress: bool = False,
) -> Mined:
    """Find, for each feature map of some layers, the strongest activations over a data set (paper §4, Fig. 2).

    An image counts once for a map: at its strongest position, the first in row order on ties. Among images of equal
    activation the earlier one comes first.

    Images go through the model in chunks of ``compute_batch`` that lie fixed on the data set (0 to 15, 16 to 31, …;
    the last is filled up with zeros), because a sum's last bit can depend on the shape of a batch. So neither
    ``batch_size`` nor the number of processes nor an interruption changes anything in the result. A chunk that there
    is no memory for is computed in halves, which may change a last bit.

    Whatever goes wrong with an image costs it alone: it cannot be read, preprocessing or the model raises on it, it
    kills the process that loads it, there is no memory for it, or an activation is NaN or infinite.

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
    retry
        Whether to try images again that the state notes as left out.
    progress
        Whether to show a progress bar.

    Returns
    -------
    Mined
        An image that something went wrong with is left out and listed with the reason.

    Raises
    ------
    InputError
        A layer or channel is not there, a number is out of range, or the state is of another configuration.
    ModelError
        Not one image could be used, or the GPU is unusable after an error.
    StoreError
        The state cannot be written; what was written before is kept.
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
    team = joined()
    chunks = -(-len(images) // compute_batch)
    begun = Progress(torch.zeros(chunks, dtype=torch.bool))
    folder = Path(state) if state is not None else None
    if folder is not None:
        with writing(folder, begun=False), tempfile.TemporaryFile(dir=folder):
            pass  # told now, not when there is something to write
        for path in sorted(folder.glob("state-*.safetensors")):
            earlier, theirs = Progress.load(path)
            if bool(earlier.done.any()):
                _check_same(theirs, config, path)
                begun.merge(earlier)
        if retry:
            begun.undo_skipped(compute_batch)
        team.wait()  # every process has read before one writes
        if team.leads and (retry or bool(begun.done.any())):
            with writing(folder):
                begun.save(folder / "state-0.safetensors", config)
                # what the others have noted is in that now, but for what is to be done again
                for path in folder.glob("state-*.safetensors") if retry else ():
                    if path.name != "state-0.safetensors":
                        path.unlink()
        team.wait()
    miner = Miner(network, layers, channels, top, compute_batch, proven=bool(begun.layers))
    todo = (~begun.done).nonzero()[:, 0].tolist()[team.rank :: team.count]
    own = begun if team.leads else Progress(torch.zeros_like(begun.done))
    # the first process counts what is left to it
    loaded = _chunks(images, todo, compute_batch, preprocess, batch_size, workers)
    with bars.shown(progress and team.leads, "mining"), contextlib.closing(loaded):
        file = folder / f"state-{team.rank}.safetensors" if folder is not None else None
        _mine_chunks(miner, loaded, len(todo), own, file, config)
    whole = Progress(torch.zeros_like(begun.done))
    for part in team.gathered(own):
        whole.merge(part)
    if not whole.layers:
        reason = next(iter(whole.skipped.values()), "there are none")
        raise ModelError(f"{images.name}: not one of its {len(images)} images could be used: {reason}")
    ordered = {layer: whole.layers[layer] for layer in layers}
    return Mined(ordered, tuple(images.ids), tuple(sorted(whole.skipped.items())), config)


def _mine_chunks(
    miner: Miner,
    loaded: Iterator[tuple[int, list[Tensor | str]]],
    count: int,
    found: Progress,
    path: Path | None,
    config: dict[str, Any],
) -> None:
    """Mine one chunk after the other; what is found is written to ``path`` now and then, and at the end."""

    def keep() -> None:
        # a run that failed at once must not stand in the way of the right one
        if path is not None and bool(found.done.any()):
            with writing(path.parent):
                found.save(path, config)

    saved = time.monotonic()
    try:
        for chunk, items in bars.track(loaded, "mining", total=count):
            part = Progress(torch.zeros_like(found.done))
            part.done[chunk] = True
            miner.chunk(chunk * miner.size, items, part)
            found.merge(part)
            if time.monotonic() - saved >= SAVE_SECONDS:
                keep()
                saved = time.monotonic()
    except BaseException:  # Ctrl-C too
        with contextlib.suppress(StoreError):
            keep()
        raise
    keep()


def _chunks(
    source: ImageSource, todo: list[int], size: int, preprocess: Any, batch_size: int, workers: int
) -> Generator[tuple[int, list[Tensor | str]]]:
    """Load the images of each chunk; in place of one that cannot be had there is the reason."""
    portions = _portions(source, todo, size, batch_size)
    waiting: list[Tensor | str] = []
    for loaded in load_batches(portions, preprocess, workers, read=source.load):
        items: dict[int, Tensor | str] = dict(loaded.errors)
        for rows, inputs in loaded.groups:
            items.update(zip(rows, inputs, strict=True))
        for row in range(len(loaded.batch.places)):
            waiting.append(items[row])
            index = loaded.batch.first + row
            if index == min((index // size + 1) * size, len(source)) - 1:
                yield index // size, waiting
                waiting = []


def _portions(source: ImageSource, todo: list[int], size: int, batch_size: int) -> Iterator[Batch]:
    """Cut the images of some chunks into what is loaded at a time: images that follow each other."""
    start = 0
    for place, chunk in enumerate(todo):
        if place + 1 < len(todo) and todo[place + 1] == chunk + 1:
            continue  # the next one goes with it
        end = min((chunk + 1) * size, len(source))
        for first in range(todo[start] * size, end, batch_size):
            ids = source.ids[first : min(first + batch_size, end)]
            yield Batch(first, first, tuple(Place(name) for name in ids))
        start = place + 1


@contextlib.contextmanager
def processes() -> Iterator[int]:
    """Join the processes that ``torchrun`` started, where it did; give this one's rank."""
    with ranks() as team:
        yield team.rank


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
