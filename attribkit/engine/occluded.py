"""What a model says of occluded copies of images, found by either engine."""

from __future__ import annotations

import inspect
import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from attribkit import progress
from attribkit.engine.incremental import (
    CACHE,
    Elsewhere,
    Image,
    Incremental,
    NotReplayable,
    forget,
    is_torchs_own,
    keep,
    kept,
)
from attribkit.engine.incremental.spans import Spans
from attribkit.engine.mixing import mixes
from attribkit.engine.observer import Observer
from attribkit.errors import IncrementalWarning
from attribkit.targets import CallableTarget

__all__ = ["Observer", "Occluded"]

#: The most occluded images that go through the model at once; more gain nothing and leave the caches.
ROWS = 32

#: How many bytes may be read for a batch as a whole to a byte of its rows' memory (measured on AlexNet, ZFNet, VGG16).
WEIGHTS = 1.5

#: Memory for a batch where the machine does not say how much is free, and the most that is taken unasked.
BATCH_BYTES = 1 << 29

#: From how many times fewer multiplications on incremental inference is taken unasked.
WORTH = 1.05

#: From which share of the multiplications in kernels that do more than the model's own on it is taken unasked too.
FUSED = 0.2

#: Below this many windows the recording costs more than it saves.
FEWEST = 8

#: Of how many images the clean maps are kept, for the next windows of theirs; they are large.
KEPT = 2

T = TypeVar("T")
Places = Sequence[tuple[int, int]]

#: Why incremental inference was no use, by model and by images and windows: a recording costs a few forward passes. A
#: model that is changed afterwards still runs in full, which costs time only. Nothing is noted of calls with
#: forward_kwargs: with others the model may do something else.
_HOPELESS: WeakKeyDictionary[nn.Module, dict[Any, str]] = WeakKeyDictionary()

log = logging.getLogger("attribkit.builtin.occlusion")


class Occluded:
    """What the model says of images with one window of a grid filled.

    Parameters
    ----------
    observer
        Runs the model and says what is noted.
    inputs
        Float tensor [N, C, H, W].
    grid
        Where the windows start and end, (rows, columns): two lists each.
    fill
        What they are filled with.
    engine : {"auto", "incremental", "full"}
    max_bytes
        About how much memory a batch may take; None: a quarter of what is free, at most `BATCH_BYTES`.

    Attributes
    ----------
    incremental : bool
        Whether incremental inference is what finds them, as far as is known.
    """

    def __init__(
        self,
        observer: Observer,
        inputs: Tensor,
        grid: tuple[Spans, Spans],
        fill: float,
        engine: str,
        max_bytes: int | None,
    ) -> None:
        self.observer, self.inputs, self.grid, self.fill, self.engine = observer, inputs, grid, fill, engine
        self.max_bytes = max_bytes or _free_bytes(inputs.device)
        self.shape = (len(grid[0][0]), len(grid[1][0]))
        self.incremental = engine != "full"
        self._mixes: bool | None = None  # whether an image's scores depend on the others; None: not known yet
        self._recorded: Incremental | None = None
        self._reused = False  # whether that is an earlier call's program
        self._images: dict[int, Image] = {}
        self._clean: dict[str, Tensor] | None = None
        self._replayed = False  # whether that is the program's

    def clean(self) -> dict[str, Tensor]:
        """Return, by name, what is noted of every image as it is: after `find`, by the engine that found the others."""
        if self._clean is None:
            index = torch.arange(len(self.inputs), device=self.inputs.device)
            recorded = self._try(self._record) if self.incremental and len(self.inputs) == 1 else None
            self._replayed = recorded is not None
            if recorded is not None:
                self._clean = self.observer.found(recorded.returned(), index, first=True)
            else:
                self._clean = self.observer.look(self.inputs.clone(), index, first=True)
        return self._clean

    def find(self, places: Sequence[Places] | None = None) -> dict[str, Tensor]:
        """Return, by name, what is noted of every image with every window filled, one after the other.

        Parameters
        ----------
        places
            For each image the windows (row, column) to look at; None: all. Others are 0 in what is returned.

        Returns
        -------
        dict of str to Tensor
            [N, rows, columns] each.
        """
        if places is None:
            everywhere = [(y, x) for y in range(self.shape[0]) for x in range(self.shape[1])]
            places = [everywhere] * len(self.inputs)
        found = self._try(lambda: self._incremental(places)) if self.incremental else None
        if found is not None:
            return found
        if self._replayed:  # what was replayed is not to be trusted
            self._clean = None
            self.clean()
        return self._full(places)

    def _note(self, found: dict[str, Tensor], sample: int | Tensor, places: Places, seen: dict[str, Tensor]) -> None:
        at = torch.tensor([y * self.shape[1] + x for y, x in places], device=self.inputs.device)
        for key, value in seen.items():
            if key not in found:
                found[key] = value.new_zeros(len(self.inputs), *self.shape)
            found[key].flatten(1)[sample, at] = value

    def _full(self, places: Sequence[Places]) -> dict[str, Tensor]:
        """Run the model on every occluded image."""
        if self._mixes is None:
            self._mixes = self._looks_mixed()
        if self._mixes:
            return self._by_windows(places)
        inputs = self.inputs
        jobs = [(sample, place) for sample, wanted in enumerate(places) for place in wanted]
        if not self.observer.bytes_per_row:
            self.observer.measure(inputs[:1].clone(), torch.zeros(1, dtype=torch.long, device=inputs.device))
        rows = max(1, min(len(jobs), self._rows()))
        buffer = inputs.new_empty(rows, *inputs.shape[1:])
        found: dict[str, Tensor] = {}
        for start in progress.track(range(0, len(jobs), rows), "occlusion"):
            part = jobs[start : start + rows]
            index = torch.tensor([sample for sample, _ in part], device=inputs.device)
            occluded = torch.index_select(inputs, 0, index, out=buffer[: len(part)])
            for row, (_, place) in zip(occluded, part, strict=True):
                self._occlude(row, place)
            self._note(found, index, [place for _, place in part], self.observer.look(occluded, index))
        return found

    def _occlude(self, image: Tensor, place: tuple[int, int]) -> Tensor:
        """Fill one window of [..., H, W]."""
        (tops, bottoms), (lefts, rights) = self.grid
        y, x = place
        image[..., tops[y] : bottoms[y], lefts[x] : rights[x]] = self.fill
        return image

    def _by_windows(self, places: Sequence[Places]) -> dict[str, Tensor]:
        """Run the model on the caller's own batch with one window filled in all of its images, window by window."""
        wanted: dict[tuple[int, int], list[int]] = {}
        for sample, own in enumerate(places):
            for place in own:
                wanted.setdefault(place, []).append(sample)
        index = torch.arange(len(self.inputs), device=self.inputs.device)
        found: dict[str, Tensor] = {}
        for place, samples in progress.track(wanted.items(), "occlusion"):
            seen = self.observer.look(self._occlude(self.inputs.clone(), place), index)
            at = torch.tensor(samples, device=self.inputs.device)
            self._note(found, at, [place] * len(samples), {key: value[at] for key, value in seen.items()})
        return found

    def _looks_mixed(self) -> bool:
        """Tell whether occluded images cannot share a batch."""
        inputs, (rows, columns) = self.inputs, self.shape
        ends = (0, 0), (rows - 1, columns - 1)
        if ends[0] == ends[1] and len(inputs) == 1:
            return False
        pair = torch.stack([self._occlude(inputs[0].clone(), place) for place in ends])
        index = torch.arange(len(inputs), device=inputs.device)

        def forward(rows: Tensor) -> Any:
            return self.observer.forward(rows, index if len(rows) == len(index) else index.new_zeros(len(rows)))

        return mixes(forward, self._occlude(inputs.clone(), ends[0]), pair)

    def _rows(self) -> int:
        """Return how many occluded images are best run at once."""
        each = max(1, self.observer.bytes_per_row)
        rows = self.max_bytes // each
        if self.inputs.device.type == "cpu":
            # reading the weights of the last layers anew for every batch may cost more than leaving the caches
            rows = min(rows, max(3 * CACHE // each, math.ceil(self.observer.bytes_per_batch / (WEIGHTS * each))))
        return min(rows, ROWS)

    def _try(self, action: Callable[[], T]) -> T | None:
        """Return what incremental inference gives; None where the model does not allow it, and no more of it then."""
        lasting, warns = True, False
        try:
            return action()
        except NotReplayable as error:  # not held on to: its traceback holds all that is here
            why, lasting, warns = str(error), error.lasting, error.warns
        except Exception as error:
            if not is_torchs_own(error):
                raise
            # a replay that torch refuses; if the model itself is at fault, running it in full shows it
            why = f"{type(error).__name__}: {error}".splitlines()[0]
        self._recorded, self._images = None, {}
        if warns:
            self._mixes = None  # the model is not what its recording said
        if self._reused:  # the model is not what it was in a way that cannot be seen on it
            forget(self.observer.model)
            self._reused = False
            if self._replayed:  # so are the clean score, and which unit is the most active
                self._clean, self._replayed = None, False
                self.clean()
            return self._try(action) if self.incremental else None
        self.incremental = False
        if lasting and not self.observer.forward_kwargs:
            _HOPELESS.setdefault(self.observer.model, {})[self._case()] = why
        message = f"occlusion runs the model in full: {why}"
        log.info(message)
        if self.engine == "incremental" or warns:
            warnings.warn(message, IncrementalWarning, stacklevel=_outside())
        return None

    def _incremental(self, places: Sequence[Places]) -> dict[str, Tensor]:
        recorded = self._record()
        found: dict[str, Tensor] = {}
        blocks = [recorded.blocks(wanted) for wanted in places]
        for sample, seen, returned in progress.track(
            self._blocks(recorded, places, blocks), "occlusion", total=sum(map(len, blocks))
        ):
            if seen:
                index = torch.full((len(seen),), sample, dtype=torch.long, device=self.inputs.device)
                self._note(found, sample, seen, self.observer.found(returned, index))
        return found

    def _record(self) -> Incremental:
        if self._recorded is not None:
            return self._recorded
        inputs, observer, case = self.inputs, self.observer, self._case()
        if self.engine == "auto" and not observer.forward_kwargs:
            known = _HOPELESS.get(observer.model, {}).get(case)
            if known is not None:
                raise NotReplayable(known)
        if any(isinstance(v, Tensor) and v.ndim and len(v) == len(inputs) for v in observer.forward_kwargs.values()):
            raise NotReplayable("forward_kwargs differ from sample to sample")
        if self.shape[0] * self.shape[1] < FEWEST:
            raise NotReplayable("there are too few windows for it to pay")
        first = torch.zeros(1, dtype=torch.long, device=inputs.device)

        def forward(rows: Tensor) -> Any:
            return observer.forward(rows, first.expand(len(rows)))

        # what a caller's function reads, or forward_kwargs do, need not be the same the next time
        lasting = not observer.forward_kwargs and not isinstance(observer.target, CallableTarget)
        program = kept(observer.model, case) if lasting else None
        self._reused = program is not None
        recorded = Incremental(forward, inputs[:1], self.grid, self.fill, self.max_bytes, program)
        self._mixes = False  # recorded on batches of two sizes, it would have been refused
        if self.engine == "auto" and recorded.plan.gain() < WORTH and recorded.plan.fused() < FUSED:
            raise NotReplayable("a window changes nearly all of every feature map")
        if isinstance(observer.target, CallableTarget):
            self._probe(recorded)
        if lasting and program is None and all(one.is_floating_point() for one in recorded.first.expected):
            keep(observer.model, case, recorded.program)
        self._recorded = recorded
        return recorded

    def _probe(self, recorded: Incremental) -> None:
        """See whether the caller's function makes its scores of the outputs alone: a replay calls no hooks."""
        index = torch.zeros(1, dtype=torch.long, device=self.inputs.device)
        try:
            # the model itself ran on other rows since
            found = self.observer.found(recorded.returned(), index)["score"]
        except Exception:  # if the function itself is at fault, the next call raises the same
            found = None
        theirs = self.observer.look(self.inputs[:1].clone(), index)["score"]
        if found is None or not torch.allclose(found, theirs, rtol=1e-3, atol=0, equal_nan=True):
            raise Elsewhere("the target depends on more than the model returns")

    def _case(self) -> Any:
        """Return what the worth of incremental inference depends on beside the model."""
        layers = (self.observer.target.layer, self.observer.unit_layer)
        device = self.inputs.device
        cast = torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type)
        return (tuple(self.inputs.shape[1:]), self.inputs.dtype, device, cast, str(self.grid), layers)

    def _ready(self, recorded: Incremental, sample: int, wanted: Places) -> Image:
        if sample == 0:
            return recorded.first
        image = self._images.pop(sample, None) or recorded.ready(self.inputs[sample : sample + 1], sample, wanted)
        self._images[sample] = image
        if len(self._images) > KEPT:
            del self._images[next(iter(self._images))]
        return image

    def _blocks(
        self, recorded: Incremental, places: Sequence[Places], blocks: Sequence[Any]
    ) -> Iterator[tuple[int, list[tuple[int, int]], Any]]:
        for sample, (wanted, own) in enumerate(zip(places, blocks, strict=True)):
            if not wanted:
                continue
            image = self._ready(recorded, sample, wanted)
            for seen, returned in recorded.run(image, own):
                yield sample, seen, returned


def _outside() -> int:
    """Return the stack level of whoever called attribkit, counted from our caller: more calls lie between at times."""
    package, level, frame = __name__.partition(".")[0], 0, inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] == package:
        level, frame = level + 1, frame.f_back
    return level


def _free_bytes(device: torch.device) -> int:
    """Return a quarter of the memory that is free, at most `BATCH_BYTES`."""
    free = 4 * BATCH_BYTES
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    elif hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(1 << 24, min(free // 4, BATCH_BYTES))
