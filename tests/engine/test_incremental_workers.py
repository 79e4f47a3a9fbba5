"""Blocks side by side: in order, on threads of their own, and nothing is left behind."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import attribkit as ak
from attribkit.engine.incremental import engine, plan, workers
from attribkit.engine.incremental.workers import how_many, may_share, side_by_side

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def four_threads():
    """Give torch four threads, whatever the machine has; no test leaves another number to threads to come."""
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    assert (torch.get_num_threads(), elsewhere()) == (4, 4)
    assert not any(thread.name.startswith("attribkit-blocks") for thread in threading.enumerate())
    torch.set_num_threads(before)


@pytest.fixture
def shared(monkeypatch):
    """Share out the smallest work, and note the threads in which blocks are computed with their share."""
    monkeypatch.setattr(engine, "_WORTH", 0)
    seen = []
    run = plan.Plan.run

    def noted(*arguments):
        seen.append((threading.current_thread().name, torch.get_num_threads()))
        return run(*arguments)

    monkeypatch.setattr(plan.Plan, "run", noted)
    return seen


def elsewhere():
    """Return how many of torch's threads a new thread has."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(torch.get_num_threads).result()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, padding=1)
        )
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.features(x).mean((2, 3)))


def image(batch=1):
    return torch.randn(batch, 3, 40, 40, generator=torch.Generator().manual_seed(1))


def explain(model, x, **options):
    return ak.attribute(model, x, "occlusion", target=2, **{"window": 6, "stride": 2, **options})


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_results_come_in_order_whatever_is_done_first(count):
    def work(item):
        time.sleep(0.02 if item % 3 == 0 else 0)
        return item, threading.current_thread().name, torch.get_num_threads()

    found = list(side_by_side(work, range(20), count))
    assert [item for item, _, _ in found] == list(range(20))
    assert len({name for _, name, _ in found}) == count
    assert {share for _, _, share in found} == {max(1, 4 // count)}


def test_the_common_number_of_threads_is_not_this_threads_own():
    """Torch has one number for each thread and one for all to come: both stay, also while work is under way."""

    def other():
        torch.set_num_threads(2)  # for this thread, and for all to come
        common = elsewhere()
        torch.set_num_threads(2)
        own = list(side_by_side(lambda _: torch.get_num_threads(), range(4), 2))
        return common, own, torch.get_num_threads(), elsewhere()

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(other).result() == (2, [1] * 4, 2, 2)
        assert torch.get_num_threads() == 4  # this thread's is its own
        torch.set_num_threads(4)
        assert pool.submit(lambda: (torch.get_num_threads(), elsewhere())).result() == (2, 4)
        during = side_by_side(lambda _: elsewhere(), range(4), 2)
        assert pool.submit(lambda: list(during)).result() == [4] * 4


def test_an_error_comes_in_its_turn_and_ends_the_work():
    begun = []

    def work(item):
        begun.append(item)
        if item == 2:
            raise KeyError("the third")
        return item

    results = side_by_side(work, range(100), 2)
    assert (next(results), next(results)) == (0, 1)
    with pytest.raises(KeyError, match="the third"):
        next(results)
    assert len(begun) <= 2 + 4


def test_whoever_stops_early_ends_the_work():
    begun = []
    results = side_by_side(begun.append, range(100), 2)
    next(results)
    time.sleep(0.1)
    assert len(begun) == 4  # two for each worker
    results.close()
    assert len(begun) == 4


@pytest.mark.parametrize("started", range(5))
def test_threads_that_cannot_be_started(monkeypatch, started):
    """What no thread does this one does, and no number of threads is left changed."""
    start, count = threading._start_new_thread, []

    def failing(*arguments):
        count.append(1)
        if len(count) > started:
            raise RuntimeError("can't start new thread")
        return start(*arguments)

    monkeypatch.setattr(threading, "_start_new_thread", failing)
    found = list(side_by_side(lambda item: item * 2, range(7), 2))
    monkeypatch.undo()
    assert found == [0, 2, 4, 6, 8, 10, 12]
    assert len(count) > started or started == 4  # two workers, and one after each to set back the number


@pytest.mark.parametrize(
    ("sizes", "threads", "most", "expected"),
    [
        ([1] * 8, 1, 8, 1),
        ([1] * 8, 2, 8, 2),
        ([1], 4, 8, 1),
        ([], 2, 8, 1),
        ([9, 1], 2, 8, 1),  # the second worker would have nothing to do
        ([5, 4, 3, 2], 2, 8, 2),
        ([1] * 4, 16, 16, 4),
        ([1] * 64, 16, 16, 16),
        ([1] * 64, 16, 8, 8),
        ([1] * 8, 2, 1, 1),
    ],
)
def test_as_many_workers_as_finish_first(sizes, threads, most, expected):
    assert how_many(sizes, threads, most) == expected


def test_what_is_this_threads_own_is_not_shared():
    assert may_share(CPU)
    assert not may_share(torch.device("cuda"))
    with torch.autocast("cpu"):
        assert not may_share(CPU)
    with Watching():
        assert not may_share(CPU)
    with Quiet():
        assert may_share(CPU)


class Watching(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class Quiet(TorchFunctionMode):
    """Sees nothing of a replay anyway."""


@pytest.mark.parametrize("batch", [1, 3])
def test_scores_are_the_same_to_the_bit(shared, monkeypatch, batch):
    model, x = Net().eval(), image(batch)
    together = explain(model, x)
    assert {name.rpartition("_")[0] for name, _ in shared} == {"attribkit-blocks"}
    assert len({name for name, _ in shared}) > 1
    assert {share for _, share in shared} == {1}
    assert together.extras["incremental"].all()
    monkeypatch.setattr(engine, "how_many", lambda *arguments: 1)
    alone = explain(model, x)
    assert torch.equal(together.values, alone.values)
    full = explain(model, x, engine="full")
    torch.testing.assert_close(together.extras["score_map"], full.extras["score_map"], rtol=1e-5, atol=1e-5)


def test_small_work_stays_in_this_thread(monkeypatch):
    counts = []
    monkeypatch.setattr(
        engine, "side_by_side", lambda *arguments: counts.append(arguments[2]) or side_by_side(*arguments)
    )
    assert explain(Net().eval(), image()).extras["incremental"].all()
    assert set(counts) == {1}


def test_a_replay_that_fails_in_another_thread_falls_back(shared, monkeypatch):
    model, x = Net().eval(), image()
    full = explain(model, x, engine="full")
    run = plan.Plan.run  # of blocks alone
    monkeypatch.setattr(plan.Plan, "run", lambda *arguments: {i: v * 2 for i, v in run(*arguments).items()})
    with pytest.warns(ak.IncrementalWarning, match="differ"):
        found = explain(model, x)
    assert torch.equal(found.values, full.values)

    def failing(*arguments):
        raise RuntimeError("no memory for this block")

    monkeypatch.setattr(plan.Plan, "run", failing)
    with pytest.warns(ak.IncrementalWarning, match="no memory for this block"):
        found = explain(model, x, engine="incremental")
    assert torch.equal(found.values, full.values)


def test_callers_in_several_threads_at_once(shared):
    model, x = Net().eval(), image()
    alone = explain(model, x).values
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: explain(model, x).values, range(9)))
    assert all(torch.equal(values, alone) for values in found)


def test_memory_is_shared_out_among_workers(shared, monkeypatch):
    """What the caller allows is for all of them together: there are as many as have enough each."""
    monkeypatch.setattr(engine, "CACHE", 40_000)
    for allowed, expected, each in ((119_999, 1, 4), (120_000, 1, 4), (240_000, 2, 2), (10_000_000, 4, 1)):
        explain(Net().eval(), image(), max_batch_bytes=allowed)
        assert len({name for name, _ in shared}) == expected
        assert {share for _, share in shared} == {each}
        shared.clear()


def test_a_position_that_takes_all_memory_has_one_worker(shared):
    """Also where that is more than a worker's share of the caches."""
    explain(Net().eval(), image(), max_batch_bytes=1)
    assert len({name for name, _ in shared}) == 1


def test_operations_that_round_by_the_number_of_threads(shared, monkeypatch):
    """The model itself had all threads: where that matters, blocks have them too."""
    run = plan.Plan.run

    def rounding(*arguments):
        factor = 1 if torch.get_num_threads() == 4 else 1 + 1e-4
        return {i: v * factor for i, v in run(*arguments).items()}

    monkeypatch.setattr(plan.Plan, "run", rounding)
    found = explain(Net().eval(), image())
    assert found.extras["incremental"].all()
    assert {share for _, share in shared} == {1, 4}
    full = explain(Net().eval(), image(), engine="full")
    torch.testing.assert_close(found.extras["score_map"], full.extras["score_map"], rtol=1e-5, atol=1e-5)


def test_without_openmp_nothing_is_shared(monkeypatch):
    workers._by_openmp.cache_clear()
    monkeypatch.setattr(torch.__config__, "parallel_info", lambda: "ATen parallel backend: native thread pool")
    assert not may_share(CPU)
    workers._by_openmp.cache_clear()
