"""The run: what is not finished yet is loaded, explained, written and noted, one batch after the other."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from attribkit import progress as bars
from attribkit.errors import AttribkitError
from attribkit.runs.computing import Computed, Computer
from attribkit.runs.loading import load_batches
from attribkit.runs.plan import Plan
from attribkit.runs.ranks import Ranks, ranks
from attribkit.runs.setup import Settings, set_up
from attribkit.store.folder import StoreFolder, writing
from attribkit.store.index import Batch, Index, Result, index_path
from attribkit.store.layout import FAILED, SHARDS, rank_file, rank_files, shard_name
from attribkit.store.lock import Lock
from attribkit.store.reader import open_store
from attribkit.store.shards import Written, write_shard

if TYPE_CHECKING:
    from attribkit.models.loading import LoadedModel

__all__ = ["Outcome", "run"]

MERGE_SECONDS = 10.0
"""How often what other ranks have finished is taken over, for those who read meanwhile."""

Told = Callable[[str, str], None]


@dataclass(frozen=True)
class Outcome:
    """What the whole store holds when a run has ended.

    Attributes
    ----------
    images, explained, failed
        How many images there are, how many have a map, and of how many something failed.
    done
        How many batches this call has done, over all processes.
    """

    images: int
    explained: int
    failed: int
    done: int


class Stopped(AttribkitError):
    """The first process of the run cannot go on."""


def run(
    plan: Plan,
    loaded: LoadedModel,
    *,
    failed: Told | None = None,
    progress: bool = False,
) -> Outcome:
    """Explain a data set into a store.

    Stopped at any moment and in any way, the same call goes on from there. Where ``torchrun`` started several
    processes, they share the batches.

    Parameters
    ----------
    plan
        What to do.
    loaded
        The model; it runs on its device and is left as it was.
    failed
        Called with the image and the reason, for each image that fails.
    progress
        Whether to show a progress bar.

    Returns
    -------
    Outcome

    Raises
    ------
    StoreError
        The store is of another run, in use, damaged or cannot be written.
    InputError, PluginError
        The target or an option is wrong for every image; a store that was begun is removed again.
    """
    with ranks() as team, ExitStack() as stack:
        folder: StoreFolder | None = None
        index: Index | None = None
        if team.leads:
            try:
                folder = StoreFolder(plan.out)
                stack.callback(_discard_if_empty, folder)
                with writing(plan.out):
                    stack.enter_context(Lock(plan.out))
                    index = Index(index_path(plan.out), plan.methods)
                    stack.callback(index.close)
                    settings = set_up(plan, loaded, index, team)
            except AttribkitError as error:
                team.told(str(error))
                raise
        told = team.told(settings if team.leads else None)
        if not isinstance(told, Settings):
            raise Stopped(f"the first process of the run stopped: {told}")
        if index is None:
            index = Index(index_path(plan.out), plan.methods)
            stack.callback(index.close)
        with _threads(told.threads):
            _Worker(plan, loaded, index, team, failed).work(told.pending, progress)
        team.wait()
        outcome = Outcome(0, 0, 0, 0)
        if team.leads:
            with writing(plan.out):
                take_over(index, plan.out, remove=True)
            store = open_store(plan.out)
            outcome = Outcome(store.images, *store.counts(), len(told.pending))
        return team.told(outcome)


class _Worker:
    """Does one process's part."""

    def __init__(self, plan: Plan, loaded: LoadedModel, index: Index, team: Ranks, failed: Told | None) -> None:
        self.plan, self.loaded, self.main, self.team, self.failed = plan, loaded, index, team, failed
        options = {name: plan.options.get(name, {}) for name in plan.methods}
        self.computer = Computer(loaded.model, options, plan.target, plan.half, plan.shrink)
        self.merged = time.monotonic()

    def work(self, pending: list[int], progress: bool) -> None:
        """Do this process's share of the pending batches."""
        mine = pending[self.team.rank :: self.team.count]
        with ExitStack() as stack:
            index = self.main
            if not self.team.leads:
                with writing(self.plan.out):
                    index = Index.of_rank(rank_file(self.plan.out, self.team.rank), self.plan.methods)
                stack.callback(index.close)
            stack.enter_context(bars.shown(progress and self.team.leads, "explaining"))
            batches = load_batches(
                self.main.batches(mine),
                self.loaded.preprocess,
                self._workers(len(mine)),
                pinned=self.computer.device.type == "cuda",
            )
            for loaded in bars.track(batches, "batches", total=len(mine)):
                computed = self.computer.compute(loaded)
                self._refuse(computed, index)
                with writing(self.plan.out):
                    self._keep(index, loaded.batch, computed)
                self._tell(loaded.batch, computed)

    def _keep(self, index: Index, batch: Batch, computed: Computed) -> None:
        """Write the shard, then note it: what is noted is on the disk."""
        name, written = None, Written(0, 0)
        if computed.tensors:
            name = shard_name(batch.number)
            about = {"attribkit": f"batch {batch.number}"}
            written = write_shard(self.plan.out / SHARDS / name, computed.tensors, about)
        for method, coverage in computed.coverage.items() if self.team.leads else ():
            self.main.note(f"coverage {method}", coverage)
        index.finish(batch.number, computed.results, name, written, computed.seconds)
        if self.team.leads and self.team.count > 1 and time.monotonic() - self.merged > MERGE_SECONDS:
            take_over(self.main, self.plan.out)
            self.merged = time.monotonic()

    def _refuse(self, computed: Computed, index: Index) -> None:
        """Raise what is as wrong for the images to come: no image of the batch was explained, and none before."""
        if self.plan.every and len(computed.refused) < len(self.plan.methods):
            return
        for method, error in computed.refused.items():
            if not self.main.succeeded(method) and not index.succeeded(method):
                raise error

    def _tell(self, batch: Batch, computed: Computed) -> None:
        if self.failed is None:
            return
        reasons: dict[int, list[Result]] = {}
        for result in computed.results:
            if result.status == FAILED:
                reasons.setdefault(result.position, []).append(result)
        for position, results in reasons.items():
            place = batch.places[position - batch.first]
            self.failed(place.image, in_words([(r.method, r.error or "") for r in results], len(self.plan.methods)))

    def _workers(self, batches: int) -> int:
        if self.plan.workers is not None:
            return self.plan.workers
        if batches < 4:
            return 0  # not worth starting them
        return max(1, min(4, (os.cpu_count() or 1) // self.team.local - 1))


def in_words(failures: list[tuple[str, str]], methods: int) -> str:
    """Return why an image failed: each method's reason, or the one that all share."""
    reasons = list(dict.fromkeys(reason for _, reason in failures))
    if len(reasons) == 1 and len(failures) == methods:
        return reasons[0] if methods == 1 or not reasons[0] else f"{reasons[0]}"
    return "; ".join(f"{method}: {reason}" for method, reason in failures)


def take_over(index: Index, folder: Path, remove: bool = False) -> None:
    """Take over what the other ranks have finished; with ``remove``, their indices go."""
    for path in rank_files(folder):
        index.merge(path)
        if remove:
            path.unlink()
            path.with_name(f"{path.name}-journal").unlink(missing_ok=True)


def _discard_if_empty(folder: StoreFolder) -> None:
    """Remove a store that was begun in vain: nothing is finished in it."""
    if not folder.new:
        return
    try:
        empty = not len(open_store(folder.path))
    except AttribkitError:
        empty = True
    if empty and not any(Index.has_results(path) for path in rank_files(folder.path)):
        folder.discard()


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Compute with so many threads: another number may give other last bits."""
    before = torch.get_num_threads()
    if before == count:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
