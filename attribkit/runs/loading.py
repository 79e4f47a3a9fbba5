"""Batches of images, loaded ahead by other processes; whatever goes wrong with an image is noted and costs it alone."""

from __future__ import annotations

import signal
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from attribkit.engine.state import same_generators
from attribkit.errors import AttribkitError, ImageError, LoadingWarning
from attribkit.registry import one_line
from attribkit.runs.reading import Opener
from attribkit.store.index import Batch
from attribkit.store.layout import Place

__all__ = ["Loaded", "load_batches"]

AHEAD = 2
"""Batches that each worker loads ahead."""

DEATHS = 3
"""After so many deaths without a guilty image it is the machine (too little shared memory, say): no workers then."""

_KILLED = "the process that loaded it was killed: too large for the memory, or a decoder crashed"


@dataclass
class Loaded:
    """A batch's images.

    Attributes
    ----------
    batch
        Which.
    groups
        Rows of the batch and their inputs [B, C, H, W]; one group, unless preprocessing gives several sizes.
    errors
        Rows that could not be loaded, with the reason.
    """

    batch: Batch
    groups: list[tuple[list[int], Tensor]]
    errors: dict[int, str]

    def pin_memory(self) -> Loaded:
        """Move the inputs to page-locked memory; torch's loader asks for it."""
        self.groups = [(rows, inputs.pin_memory()) for rows, inputs in self.groups]
        return self


@dataclass
class _Parcel:
    """A batch on its way from a worker: by shared memory, or as bytes where there is too little of that.

    torch would share the tensors when it sends them, in a thread of its own; where that fails there, the batch is lost
    and waited for without end.
    """

    batch: Batch
    errors: dict[int, str]
    packed: list[tuple[list[int], torch.dtype, torch.Size, Any]]

    @classmethod
    def of(cls, loaded: Loaded) -> Any:
        """Return a batch whose tensors are shared, or a parcel of their bytes."""
        try:
            tensor: Any  # torch leaves the method untyped
            for _, tensor in loaded.groups:
                tensor.share_memory_()
        except (RuntimeError, OSError):
            packed = [
                (rows, inputs.dtype, inputs.shape, inputs.flatten().view(torch.uint8).numpy())
                for rows, inputs in loaded.groups
            ]
            return cls(loaded.batch, loaded.errors, packed)
        return loaded

    def opened(self) -> Loaded:
        """Return the batch."""
        groups = [(rows, torch.from_numpy(data).view(dtype).reshape(shape)) for rows, dtype, shape, data in self.packed]
        return Loaded(self.batch, groups, self.errors)


class _Images(torch.utils.data.Dataset[Any]):
    """Loads the batch that it is indexed by."""

    def __init__(self, preprocess: Callable[[Image.Image], Tensor], read: Callable[[int], Image.Image] | None) -> None:
        self.preprocess, self.read = preprocess, read
        self.opener = Opener()

    def __getitem__(self, batch: Batch) -> Any:
        kinds: dict[Any, tuple[list[int], list[Tensor]]] = {}
        errors: dict[int, str] = {}
        for row, place in enumerate(batch.places):
            found = self._load(batch.first + row, place)
            if isinstance(found, str):
                errors[row] = found
            else:
                rows, tensors = kinds.setdefault((found.shape, found.dtype), ([], []))
                rows.append(row)
                tensors.append(found)
        loaded = Loaded(batch, [(rows, torch.stack(tensors)) for rows, tensors in kinds.values()], errors)
        return loaded if torch.utils.data.get_worker_info() is None else _Parcel.of(loaded)

    def _load(self, position: int, place: Place) -> Tensor | str:
        doing = "reading"
        try:
            image = self.opener.read(place) if self.read is None else self.read(position)
            doing = "preprocessing"
            found = self.preprocess(image)
        except ImageError as error:
            return " ".join(str(error).split())
        except Exception as error:  # a preprocessing or a source of the user's may raise anything
            return one_line(error) if isinstance(error, AttribkitError) else f"{doing}: {one_line(error)}"
        if not isinstance(found, Tensor) or found.ndim != 3 or not found.is_floating_point():
            kind = f"{found.dtype} {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            return f"preprocessing returned {kind}, not a float tensor [C, H, W]"
        if not bool(found.isfinite().all()):
            return "preprocessing returned NaN or infinite values"
        return found.detach()


def load_batches(
    batches: Iterable[Batch],
    preprocess: Callable[[Image.Image], Tensor],
    workers: int,
    pinned: bool = False,
    read: Callable[[int], Image.Image] | None = None,
) -> Iterator[Loaded]:
    """Load batches in their order.

    Where a worker is killed, the images of its batch are loaded one by one, each by a process of its own, so that the
    guilty one is found; then it goes on as before. Where that happens again and again and none is guilty, this process
    loads the rest, and says so in a `LoadingWarning`.

    Parameters
    ----------
    batches
        They are taken from as they are needed.
    preprocess
        From an image to the model's input.
    workers
        How many processes load; 0: this one.
    pinned
        Whether the inputs lie in page-locked memory, from which a GPU takes them faster.
    read
        Gives an image by its position, where its place does not say where it lies; it raises `ImageError`.
    """
    images = _Images(preprocess, read)
    rest = iter(batches)
    waiting: deque[Batch] = deque()  # taken from `rest` for the workers, and not come back yet
    deaths = 0
    while workers and deaths < DEATHS:
        try:
            for loaded in _by_workers(images, _noted(rest, waiting), workers, pinned):
                waiting.popleft()
                yield loaded
            return
        except _WorkerDied:
            deaths += 1
        if waiting:
            loaded = _one_by_one(images, waiting.popleft())
            deaths = 0 if _KILLED in loaded.errors.values() else deaths
            yield loaded
    if workers:
        warnings.warn(
            f"the processes that load images were killed {DEATHS} times, by no one image (is there too little memory?):"
            " images are loaded one after the other from here on, without them",
            LoadingWarning,
            stacklevel=2,
        )
    for batch in chain(waiting, rest):
        with same_generators(torch.device("cpu")):
            loaded = images[batch]
        yield loaded
    images.opener.close()


class _WorkerDied(Exception):
    """A process that loaded images ended unasked."""


def _noted(rest: Iterator[Batch], waiting: deque[Batch]) -> Iterator[Batch]:
    """Give out what waits already, then what comes, which is noted as waiting."""
    yield from list(waiting)
    for batch in rest:
        waiting.append(batch)
        yield batch


def _by_workers(images: _Images, batches: Iterator[Batch], workers: int, pinned: bool) -> Iterator[Loaded]:
    loader: Any = torch.utils.data.DataLoader(
        images,
        batch_size=None,
        sampler=_Once(batches),
        num_workers=workers,
        prefetch_factor=AHEAD,
        worker_init_fn=_in_worker,
        pin_memory=pinned,
        generator=torch.Generator().manual_seed(0),  # it draws a seed for its workers: not from the caller's numbers
    )
    iterator = iter(loader)
    handler = _put_aside()
    try:
        while True:
            try:
                loaded = next(iterator)
            except StopIteration:
                return
            except RuntimeError as error:
                if "DataLoader worker" in str(error):
                    raise _WorkerDied from error
                raise
            except (EOFError, OSError) as error:  # it ended before what it had sent was fetched from it
                raise _WorkerDied from error
            yield loaded.opened() if isinstance(loaded, _Parcel) else loaded
    finally:
        iterator._shutdown_workers()
        if handler is not None:
            signal.signal(signal.SIGCHLD, handler)


def _one_by_one(images: _Images, batch: Batch) -> Loaded:
    """Load each image of a batch in a process of its own, and put them together again."""
    errors: dict[int, str] = {}
    kinds: dict[Any, tuple[list[int], list[Tensor]]] = {}
    for row, place in enumerate(batch.places):
        single = Batch(batch.number, batch.first + row, (place,))
        try:
            (loaded,) = _by_workers(images, iter([single]), 1, False)
        except _WorkerDied:
            errors[row] = _KILLED
            continue
        errors.update(dict.fromkeys([row], loaded.errors[0]) if loaded.errors else {})
        for _, tensor in loaded.groups:
            rows, tensors = kinds.setdefault((tensor.shape, tensor.dtype), ([], []))
            rows.append(row)
            tensors.append(tensor)
    return Loaded(batch, [(rows, torch.cat(tensors)) for rows, tensors in kinds.values()], errors)


class _Once:
    """A sampler over what an iterator gives."""

    def __init__(self, items: Iterator[Batch]) -> None:
        self.items = items

    def __iter__(self) -> Iterator[Batch]:
        return self.items


def _put_aside() -> Any:
    """Put torch's handler of SIGCHLD aside and return it; None where it is not there.

    It raises an error about a dead worker in the midst of whatever runs, and so would break off a computation under
    way. Waiting for the worker's next batch tells as well.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
        return None
    handler = signal.getsignal(signal.SIGCHLD)
    if getattr(handler, "__module__", None) != "torch.utils.data._utils.signal_handling":
        return None
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    return handler


def _in_worker(number: int) -> None:
    # Ctrl-C reaches every process of the terminal: the parent ends its workers
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
