"""Joining processes by a store that holds what others, who are dead, left in it."""

import threading
import time
from datetime import timedelta

import pytest
import torch.distributed as dist

from attribkit._processes import agreed_name, process_group

PATIENCE = timedelta(seconds=20)


def attempt(store, order, pause=0.1):
    """Return the names that processes hear, which come in this order."""
    heard = {}

    def come(rank):
        heard[rank] = agreed_name(store, rank, len(order), PATIENCE)

    threads = []
    for rank in order:
        threads.append(threading.Thread(target=come, args=(rank,), daemon=True))
        threads[-1].start()
        time.sleep(pause)
    for thread in threads:
        thread.join(PATIENCE.total_seconds())
    assert sorted(heard) == sorted(order)
    return set(heard.values())


def test_every_attempt_has_a_name_of_its_own_whoever_comes_first():
    store = dist.HashStore()
    names = [attempt(store, order) for order in ((0, 1, 2), (2, 1, 0), (1, 0, 2), (0, 1, 2), (0, 1), (1, 0))]
    assert all(len(each) == 1 for each in names)
    assert len(set.union(*names)) == len(names)


def test_the_words_of_those_who_died_before_they_were_told_are_no_hindrance():
    store = dist.HashStore()
    store.set("word 1", "of one who is dead")
    (name,) = attempt(store, (0, 1, 2))
    store.set("word 2", "of another")
    (other,) = attempt(store, (2, 0, 1))
    assert name != other


@pytest.mark.parametrize(
    ("rank", "absent"), [(0, "2 of 4 processes did not join within 0:00:01: rank 1, 3"), (2, "rank 0")]
)
def test_who_does_not_come_in_time_is_named(rank, absent):
    store = dist.HashStore()
    store.set("word 1", "of one who is dead")
    if rank == 0:
        other = threading.Thread(target=agreed_name, args=(store, 2, 4, PATIENCE), daemon=True)
        other.start()
    with pytest.raises(RuntimeError, match=f"{absent}$") as caught:
        agreed_name(store, rank, 4, timedelta(seconds=1))
    assert "\n" not in str(caught.value)
    if rank == 0:
        other.join(PATIENCE.total_seconds())
        assert not other.is_alive()  # it was told before the first gave up


@pytest.fixture
def alone(monkeypatch):
    """One process, as torchrun starts it."""
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}.items():
        monkeypatch.setenv(name, value)


def fail_in_a_group():
    with process_group("gloo"):
        assert (dist.get_rank(), dist.get_world_size()) == (0, 1)
        with process_group("gloo"):  # it is there already: used as it is
            pass
        assert dist.is_initialized()
        raise KeyError


def test_a_process_group_ends_with_its_context(alone):
    with pytest.raises(KeyError):
        fail_in_a_group()
    assert not dist.is_initialized()
