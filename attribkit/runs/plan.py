"""What a run is to do, and what tells one run from another."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from attribkit._version import __version__
from attribkit.attribution import weights_hash
from attribkit.errors import InputError, as_int
from attribkit.plugins import manager
from attribkit.store.errors import StoreError
from attribkit.targets import Unit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from attribkit.models.loading import LoadedModel

__all__ = ["Plan", "check_same", "identity"]


@dataclass(frozen=True)
class Plan:
    """What a run is to do.

    Attributes
    ----------
    sources
        What to explain: see `attribkit.runs.list_images`.
    out
        The store's folder.
    methods
        The methods' names.
    options
        ``{method: {option: value}}``.
    target
        A class, a `Unit`, or None: each image's most probable class.
    batch_size
        Images computed together; None: by the memory there is (see ``docs/data-sets.md``).
    workers
        Processes that load images; None: by the processors there are.
    threads
        Threads of torch's operations; None: as they are set.
    half
        Whether maps are kept as float16, each with a scale of its own.
    shrink
        Maps are averaged over squares of so many pixels.
    every
        Whether every method there is was asked for: one that refuses all images then fails alone.
    retry
        Whether batches in which something failed are done again.
    labels
        The classes' names, noted in the store for its reports.
    weights
        The file that the model's weights came from, noted in the store for its reports.
    command
        The command line, noted in the store.
    """

    sources: Sequence[str | os.PathLike[str]]
    out: Path
    methods: tuple[str, ...]
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    target: int | Unit | None = None
    batch_size: int | None = None
    workers: int | None = None
    threads: int | None = None
    half: bool = False
    shrink: int = 1
    every: bool = False
    retry: bool = False
    labels: Sequence[str] | None = None
    weights: str | None = None
    command: str = ""

    def __post_init__(self) -> None:
        """Check the numbers; `InputError` names what is wrong."""
        for name, least in (("batch_size", 1), ("workers", 0), ("threads", 1), ("shrink", 1)):
            value = getattr(self, name)
            if value is not None and as_int(name, value) < least:
                raise InputError(f"{name} must be at least {least}, got {value}")
        if isinstance(self.sources, str) or not self.sources:
            raise InputError("sources must name at least one file, folder, pattern, list or tar file")
        if not self.methods:
            raise InputError("methods is empty: give at least one")


def identity(plan: Plan, loaded: LoadedModel, device: torch.device) -> dict[str, Any]:
    """Return what every record of a store depends on, ready for JSON.

    The batch size and the number of threads are not here: the store's own are taken where none are asked for.
    """
    like = next((t for t in loaded.model.parameters() if t.is_floating_point()), torch.zeros(()))
    target: Any = plan.target
    if isinstance(target, Unit):
        target = {"layer": target.layer, "channel": target.channel, "position": _plain(target.position)}
    methods = {}
    for name in plan.methods:
        entry = manager().method(name)
        options = {key: _plain(value) for key, value in sorted(plan.options.get(name, {}).items())}
        methods[name] = {"options": options, "from": f"{entry.distribution} {entry.version}"}
    relative = any(not os.path.isabs(source) for source in plan.sources)
    return {
        "model": loaded.name,
        "weights": loaded.weights,
        "weights_sha256": weights_hash(loaded.model),
        "preprocessing": loaded.preprocessing,
        "methods": methods,
        "target": "auto" if target is None else target,
        "maps": f"{'float16' if plan.half else str(like.dtype).removeprefix('torch.')}, shrunk by {plan.shrink}",
        "device": device.type,
        "attribkit": __version__,
        "torch": str(torch.__version__),
        "working directory": os.getcwd() if relative else "",
    }


def check_same(theirs: Mapping[str, Any], ours: Mapping[str, Any], folder: Path) -> None:
    """Check that a store is of the run that is asked for.

    Raises
    ------
    StoreError
        It is not; the message names each difference.
    """
    theirs, ours = dict(theirs), dict(ours)
    if "" in (theirs.get("working directory"), ours.get("working directory")):  # whole paths lead everywhere
        theirs.pop("working directory", None), ours.pop("working directory", None)
    apart = list(_differences("", theirs, ours))
    if apart:
        raise StoreError(
            f"{str(folder)!r} holds another run: {'; '.join(apart)}. Give the same, or another folder with --out"
        )


def _differences(name: str, before: Any, now: Any) -> Any:
    if isinstance(before, Mapping) and isinstance(now, Mapping) and name != "target":
        for key in [*before, *(key for key in now if key not in before)]:
            yield from _differences(f"{name}.{key}" if name else str(key), before.get(key), now.get(key))
        if list(before) != list(now) and set(before) == set(now) and name == "methods":
            yield f"the order of methods was {', '.join(before)} and is {', '.join(now)}"
    elif before != now:
        yield f"{name} was {_short(before)} and is {_short(now)}"


def _short(value: Any) -> str:
    if value is None:
        return "absent"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return repr(value)
