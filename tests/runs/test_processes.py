"""Joining processes by a store that holds what others, who are dead, left in it."""

import threading
import time

import torch.distributed as dist

from attribkit._processes import agreed_name


def attempt(store, order, pause=0.1):
    """Return the names that processes hear, which come in this order."""
    heard = {}

    def come(rank):
        heard[rank] = agreed_name(store, rank, len(order))

    threads = []
    for rank in order:
        threads.append(threading.Thread(target=come, args=(rank,), daemon=True))
        threads[-1].start()
        time.sleep(pause)
    for thread in threads:
        thread.join(20)
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
