"""One batch, explained by every method: maps, scores and targets, or for each image the reason why not."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import attribkit
from attribkit.attribution import Attribution
from attribkit.errors import InputError, ModelError, PluginError
from attribkit.registry import one_line
from attribkit.runs.loading import Loaded
from attribkit.store.index import Result
from attribkit.store.layout import DONE, FAILED, tensor_name
from attribkit.store.records import write_target
from attribkit.targets import Unit

__all__ = ["Computed", "Computer"]


@dataclass
class Computed:
    """A batch's results, and the tensors that go into its shard.

    Attributes
    ----------
    results
        A row an image and method.
    tensors
        ``METHOD/values`` [B, C, H, W] and ``METHOD/extras.NAME``: a row a result that has a map. Maps of another size
        than the first are another part: ``METHOD/values.1``.
    seconds
        How long each method took, per image.
    coverage
        Of each method that succeeded, as a dictionary.
    refused
        Of each method that succeeded with nothing: what it raised on every image, where that is an error that all
        images would share.
    """

    results: list[Result] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    coverage: dict[str, Any] = field(default_factory=dict)
    refused: dict[str, Exception] = field(default_factory=dict)


@dataclass
class _Piece:
    """What one call gave: for some rows an attribution, or an error."""

    rows: list[int]
    found: Any  # an Attribution, or an Exception


class Computer:
    """Explains batches; what it gives is a function of the batch alone.

    Parameters
    ----------
    model
        The model, on its device.
    methods
        Each method's name with its options.
    target
        As for `attribkit.attribute`.
    half, shrink
        As for `Plan`.
    """

    def __init__(
        self,
        model: nn.Module,
        methods: Mapping[str, Mapping[str, Any]],
        target: int | Unit | None,
        half: bool = False,
        shrink: int = 1,
    ) -> None:
        self.model, self.methods, self.target, self.half, self.shrink = model, methods, target, half, shrink
        like = next((t for t in model.parameters() if t.is_floating_point()), torch.zeros(()))
        self.device, self.dtype = like.device, like.dtype

    def compute(self, loaded: Loaded) -> Computed:
        """Explain a batch.

        An out-of-memory error halves what is computed at once. Where a method raises anything else, the images are
        explained one by one, so that it costs only those that it raises on.
        """
        computed = Computed()
        for method in self.methods:
            start = time.perf_counter()
            pieces = [piece for rows, inputs in loaded.groups for piece in self._explain(method, inputs, rows)]
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            count = sum(len(rows) for rows, _ in loaded.groups)
            computed.seconds[method] = (time.perf_counter() - start) / max(1, count)
            self._gather(method, loaded, pieces, computed)
        return computed

    def _explain(self, method: str, inputs: Tensor, rows: list[int]) -> Iterator[_Piece]:
        found: Any = None
        given: Any = None
        memory = False
        try:
            given = inputs.to(self.device, self.dtype, non_blocking=True)
            found = attribkit.attribute(self.model, given, method=method, target=self.target, **self.methods[method])
        except Exception as error:
            memory = is_out_of_memory(error)
            # the traceback would keep the tensors alive that there was no room for
            found = error.with_traceback(None)
            found.__context__ = found.__cause__ = None
            if not memory:
                check_device(self.device, found)
        if isinstance(found, Attribution) or len(rows) == 1:
            yield _Piece(rows, found)
            return
        found = given = None
        if memory:
            free_memory(self.device)
        size = (len(rows) + 1) // 2 if memory else 1
        for start in range(0, len(rows), size):
            yield from self._explain(method, inputs[start : start + size], rows[start : start + size])

    def _gather(self, method: str, loaded: Loaded, pieces: list[_Piece], into: Computed) -> None:
        """Put a method's results into the order of the images, and its maps into rows."""
        reasons, good = dict(loaded.errors), {}
        raised: list[Exception] = []
        for piece in pieces:
            if isinstance(piece.found, Exception):
                reasons.update(dict.fromkeys(piece.rows, reason_of(piece.found)))
                raised.append(piece.found)
                continue
            into.coverage.setdefault(method, asdict(piece.found.coverage))
            values = piece.found.values.detach()
            for i, row in enumerate(piece.rows):
                reason = _not_finite(values[i], float(piece.found.scores[i]))
                if reason is None:
                    good[row] = (piece.found, i)
                else:
                    reasons[row] = reason
        if raised and not good and all(isinstance(e, InputError | PluginError) for e in raised):
            into.refused[method] = raised[0]
        maps = _Maps(method, _common_extras(pieces))
        for row in range(len(loaded.batch.places)):
            position = loaded.batch.first + row
            if row not in good:
                target = write_target(self.target)
                into.results.append(Result(position, method, target, None, None, None, None, FAILED, reasons[row]))
                continue
            found, i = good[row]
            values, scale = self._kept(found.values[i].detach())
            part, offset = maps.add(values, found, i)
            target = write_target(found.target if isinstance(found.target, Unit) else int(found.target[i]))
            score = float(found.scores[i])
            into.results.append(Result(position, method, target, score, part, offset, scale, DONE, None))
        into.tensors |= maps.stacked()

    def _kept(self, values: Tensor) -> tuple[Tensor, float | None]:
        """Return a map as it is kept, and its scale where it is kept in half precision."""
        if self.shrink > 1:
            values = nn.functional.avg_pool2d(
                values[None], _side(values, self.shrink), ceil_mode=True, count_include_pad=False
            )[0]
        values = values.cpu()
        if not self.half:
            return values, None
        # gradients may be smaller than the smallest float16: a power of two brings the largest value to 1, exactly
        largest = float(values.abs().max())
        scale = 2.0 ** math.ceil(math.log2(largest)) if largest > 0 else 1.0
        return (values.double() / scale).half(), scale


def check_device(device: torch.device, error: Exception) -> None:
    """Check that a device still works after an error.

    Some leave a GPU unusable for the rest of the process: the images to come would all fail, for no fault of theirs.

    Raises
    ------
    ModelError
        It does not: the run stops, to be started again.
    """
    if device.type != "cuda":
        return
    try:
        torch.cuda.synchronize(device)
    except Exception:
        raise ModelError(
            f"{device} is unusable after {one_line(error)}; what is finished is kept, and the same command goes on"
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that there was not enough memory, on a GPU or the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and ("not enough memory" in text or "can't allocate memory" in text)


def free_memory(device: torch.device) -> None:
    """Give back what a computation that broke off has left."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def reason_of(error: Exception) -> str:
    """Say in one line why an image, computed alone, failed."""
    if is_out_of_memory(error):
        return f"out of memory even alone: {one_line(error)}"
    if getattr(error, "attribkit_origin", None) == "model forward":
        return f"the model's forward raised {one_line(error)}"
    return one_line(error)


def _not_finite(values: Tensor, score: float) -> str | None:
    """Say what is no number, if anything is."""
    if not math.isfinite(score):
        return f"the score is {score}, no finite number"
    wrong = int((~values.isfinite()).sum())
    return f"the map holds NaN or infinite values ({wrong} of {values.numel()})" if wrong else None


def _common_extras(pieces: list[_Piece]) -> list[str]:
    """Return the extras that every call gave for each of its images."""
    found = [piece for piece in pieces if isinstance(piece.found, Attribution)]
    sets = [
        {name for name, tensor in piece.found.extras.items() if tensor.ndim and len(tensor) == len(piece.rows)}
        for piece in found
    ]
    return sorted(set.intersection(*sets)) if sets else []


class _Maps:
    """A method's maps, those of one size together."""

    def __init__(self, method: str, extras: list[str]) -> None:
        self.method, self.extras = method, extras
        self.parts: dict[torch.Size, dict[str, list[Tensor]]] = {}

    def add(self, values: Tensor, found: Attribution, index: int) -> tuple[int, int]:
        """Add a map and its extras; return the number of the part, and the row in it."""
        part = self.parts.setdefault(values.shape, {"values": []})
        part["values"].append(values)
        for name in self.extras:
            part.setdefault(f"extras.{name}", []).append(found.extras[name][index].detach().cpu())
        return list(self.parts).index(values.shape), len(part["values"]) - 1

    def stacked(self) -> dict[str, Tensor]:
        """Return the tensors of the shard; extras of several sizes are left out."""
        tensors = {}
        for number, part in enumerate(self.parts.values()):
            for name, rows in part.items():
                if len({(row.shape, row.dtype) for row in rows}) == 1:
                    tensors[tensor_name(self.method, name, number)] = torch.stack(rows)
        return tensors


def _side(values: Tensor, shrink: int) -> tuple[int, int]:
    return min(shrink, values.shape[-2]), min(shrink, values.shape[-1])
