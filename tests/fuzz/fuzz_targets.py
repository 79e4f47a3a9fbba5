"""What is fuzzed: attribkit's readers, each as a function of a file's bytes and an empty folder.

A reader may succeed or raise one of `ALLOWED`; anything else is a fault, and so is a message of several lines.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import nn

import attribkit as ak
from attribkit.datasets._idx import read_idx
from attribkit.errors import AttribkitError
from attribkit.features._boxes import read_boxes
from attribkit.features.crops import Crops
from attribkit.features.mined import Progress
from attribkit.images import read_image
from attribkit.models.checkpoint import read_checkpoint
from attribkit.models.labels import read_labels
from attribkit.runs.listing import list_images
from attribkit.runs.reading import Opener
from attribkit.store.index import Index, index_path
from attribkit.store.layout import SHARDS
from attribkit.store.reader import open_store
from attribkit.training.finish import finished
from attribkit.training.recipe import Recipe
from attribkit.training.runs import load_run
from attribkit.training.steps import Plateau
from attribkit.training.storage import Position, load_state

ALLOWED = (AttribkitError,)

CORPUS = Path(__file__).parent / "corpus"


class Target(NamedTuple):
    """A reader: what it reads, and of what kind its files are, for those who mutate them."""

    read: Callable[[bytes, Path], object]
    kind: str  # "safetensors", "json", "sqlite", "image" or "bytes"


def store_index(data: bytes, folder: Path) -> None:
    """Read everything of a store whose index is ``data``."""
    _, shard = _store_parts()
    _walk_store(data, shard, folder)


def store_shard(data: bytes, folder: Path) -> None:
    """Read everything of a store whose one shard is ``data``."""
    index, _ = _store_parts()
    _walk_store(index, data, folder)


def store_resumed(data: bytes, folder: Path) -> None:
    """Open an index to write into it, as a run does that goes on."""
    index_path(folder).write_bytes(data)
    index = Index(index_path(folder), ("gradient", "lrp.flat"))
    try:
        index.note("format")
        for batch in itertools.islice(index.batches(index.pending()), 50):
            _ = batch.places
    finally:
        index.close()


def attribution(data: bytes, folder: Path) -> None:
    """Load an attribution, and show it."""
    found = ak.Attribution.load(_written(data, folder, "a.safetensors"))
    _ = repr(found), found.coverage.sentence


def checkpoint_safetensors(data: bytes, folder: Path) -> None:
    """Read a checkpoint of safetensors."""
    _touched(read_checkpoint(_written(data, folder, "weights.safetensors")))


def checkpoint_torch(data: bytes, folder: Path) -> None:
    """Read a checkpoint that torch saved."""
    _touched(read_checkpoint(_written(data, folder, "weights.pt")))


def mined(data: bytes, folder: Path) -> None:
    """Read the state of mining features, and go through it."""
    found, _ = Progress.load(_written(data, folder, "state-0.safetensors"))
    for layer in found.layers.values():
        for index in range(len(layer.channels)):
            list(layer.hits(index))


def crops(data: bytes, folder: Path) -> None:
    """Read crops."""
    found = Crops.load(_written(data, folder, "crops.safetensors"))
    if found is not None:
        _ = [found.boxes[row].tolist() for row in range(len(found.channels))], found.projections.sum()


def boxes(data: bytes, folder: Path) -> None:
    """Read a file of boxes."""
    read_boxes(_written(data, folder, "boxes.json"), ["a.png", "b.png", "c.png"])


def labels(data: bytes, folder: Path) -> None:
    """Read names of classes."""
    read_labels(_written(data, folder, "labels.txt"))


def idx(data: bytes, folder: Path) -> None:
    """Read an idx file."""
    read_idx(_written(data, folder, "train-images-idx3-ubyte"))


def image(data: bytes, folder: Path) -> None:
    """Read a picture of any format."""
    found = read_image(_written(data, folder, "picture"))
    assert found.mode == "RGB"


def tar(data: bytes, folder: Path) -> None:
    """List a tar file's images and read the first of them."""
    opener, failed = Opener(), None
    path = _written(data, folder, "images.tar")
    try:
        for place in itertools.islice(list_images([path]), 20):
            try:
                opener.read(place)
            except ALLOWED as error:
                _one_line(error)
                failed = error
    finally:
        opener.close()
    if failed is not None:
        raise failed


def run_state(data: bytes, folder: Path) -> None:
    """Go on from the state of a training run."""
    network = nn.Linear(3, 2)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    load_state(_written(data, folder, "state.safetensors"), STATE_IDENTITY, network, optimiser)


def run_weights(data: bytes, folder: Path) -> None:
    """Load a finished run, and see whether it is finished."""
    path = _written(data, folder, "weights.safetensors")
    finished(folder, Position(Plateau(0.1), epoch=1), Recipe(epochs=1))
    load_run(path)


TARGETS = {
    "store_index": Target(store_index, "sqlite"),
    "store_shard": Target(store_shard, "safetensors"),
    "store_resumed": Target(store_resumed, "sqlite"),
    "attribution": Target(attribution, "safetensors"),
    "checkpoint_safetensors": Target(checkpoint_safetensors, "safetensors"),
    "checkpoint_torch": Target(checkpoint_torch, "bytes"),
    "mined": Target(mined, "safetensors"),
    "crops": Target(crops, "safetensors"),
    "boxes": Target(boxes, "json"),
    "labels": Target(labels, "bytes"),
    "idx": Target(idx, "bytes"),
    "image": Target(image, "image"),
    "tar": Target(tar, "bytes"),
    "run_state": Target(run_state, "safetensors"),
    "run_weights": Target(run_weights, "safetensors"),
}

STATE_IDENTITY = {"data": "sample", "images": 4}


def attempt(name: str, data: bytes, folder: Path) -> str:
    """Let a reader read; return the error it raised in words, "" where there was none.

    Raises
    ------
    Exception
        Whatever it raises that is none of `ALLOWED`, and AssertionError where a message has several lines.
    """
    try:
        TARGETS[name].read(data, folder)
    except ALLOWED as error:
        _one_line(error)
        return f"{type(error).__name__}: {error}"
    return ""


def seeds(name: str) -> dict[str, bytes]:
    """Return the kept files of a target, by their name."""
    return {path.name: path.read_bytes() for path in sorted((CORPUS / name).iterdir()) if path.is_file()}


def _one_line(error: BaseException) -> None:
    message = str(error)
    assert "\n" not in message, f"a message of several lines: {message!r}"
    assert 0 < len(message) < 5000, f"a message of {len(message)} characters"


def _written(data: bytes, folder: Path, name: str) -> str:
    path = folder / name
    path.write_bytes(data)
    return str(path)


def _touched(state: dict[str, torch.Tensor]) -> None:
    """Read what was loaded: bytes beyond the file would be a crash here."""
    for tensor in state.values():
        if tensor.is_floating_point() and tensor.layout is torch.strided and tensor.numel() < 10**6:
            tensor.sum()


def _store_parts() -> tuple[bytes, bytes]:
    return (CORPUS / "store_index" / "whole").read_bytes(), (CORPUS / "store_shard" / "whole").read_bytes()


def _walk_store(index: bytes, shard: bytes, folder: Path) -> None:
    (folder / SHARDS).mkdir(exist_ok=True)
    index_path(folder).write_bytes(index)
    (folder / SHARDS / "00000000.safetensors").write_bytes(shard)
    store, failed = open_store(folder), None
    for record in itertools.islice(store, 200):
        try:
            _ = record.values, record.extras, record.target
        except ALLOWED as error:
            _one_line(error)
            failed = error
    _ = len(store), store[:2], store.counts(), store.reasons(), store.place(0), store.seconds(0), repr(store)
    _ = list(itertools.islice(store.names(), 200)), list(itertools.islice(store.failures(), 200))
    if failed is not None:
        raise failed


def picture(kind: str, **options: object) -> bytes:
    """Return a small picture in some format."""
    file = io.BytesIO()
    pixels = torch.arange(12 * 10 * 3, dtype=torch.uint8).reshape(12, 10, 3)
    Image.fromarray(pixels.numpy()).save(file, kind, **options)
    return file.getvalue()
