"""Blocks of positions side by side, each on some of torch's threads.

Sharing out one operation after the other among all threads costs a meeting at the end of each, and what Python does in
between is done by one of them. Blocks know nothing of each other.
"""

from __future__ import annotations

import functools
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

#: Which share of the time that an operation takes is not shortened by more threads (measured at two of them: 0.1 on
#: MobileNetV2, 0.15 on ResNet50).
SERIAL = 0.1

T = TypeVar("T")
R = TypeVar("R")

_sharing = threading.Lock()


def may_share(device: torch.device) -> bool:
    """Tell whether what this thread computes on a device may as well be computed by others.

    Torch counts OpenMP's threads by the thread that uses them; modes and autocast are a thread's own, and others
    would go without.
    """
    return (
        device.type == "cpu"
        and _by_openmp()
        and not torch.is_autocast_enabled("cpu")
        and not torch._C._len_torch_dispatch_stack()
    )


@functools.cache
def _by_openmp() -> bool:
    return "parallel backend: OpenMP" in torch.__config__.parallel_info()


def how_many(sizes: Sequence[float], threads: int, most: int) -> int:
    """Return how many workers finish first that share ``threads`` of torch's threads.

    Parameters
    ----------
    sizes
        How long each piece of work takes, in any unit, in the order in which they are begun.
    threads
        How many threads there are; each worker has as many as every other.
    most
        How many workers there may be.
    """

    def seconds(workers: int) -> float:
        loads = [0.0] * workers
        for size in sizes:
            loads[loads.index(min(loads))] += size
        return max(loads) * (SERIAL + (1 - SERIAL) / (threads // workers))

    return min(range(1, max(1, min(threads, most, len(sizes))) + 1), key=seconds)


def side_by_side(work: Callable[[T], R], items: Sequence[T], workers: int) -> Generator[R]:
    """Do work for each item, several at once; yield what comes of it, in the items' order.

    Parameters
    ----------
    work
        Called in another thread where there is more than one worker.
    items
        At most two for each worker are begun before what came of the first is taken.
    workers
        How many there are; each has its share of this thread's number of torch's threads.
    """
    if workers == 1:
        yield from map(work, items)
        return

    def begun(item: T) -> Future[R]:
        try:
            return pool.submit(work, item)
        except RuntimeError:  # no thread can be started now
            done: Future[R] = Future()
            done.set_result(work(item))
            return done

    waiting: deque[Future[R]] = deque()
    each = max(1, torch.get_num_threads() // workers)
    with ThreadPoolExecutor(workers, "attribkit-blocks", _take_share, (each,)) as pool:
        try:
            for item in items:
                if len(waiting) == 2 * workers:
                    yield waiting.popleft().result()
                waiting.append(begun(item))
            while waiting:
                yield waiting.popleft().result()
        finally:  # whoever stops early waits for what has begun alone
            for future in waiting:
                future.cancel()


def _take_share(each: int) -> None:
    """Give this thread a number of torch's threads.

    Torch takes the number last set, by any thread, for that of every thread to come: it is set back by a thread of its
    own. The thread that started this one takes no part in it, for it may be interrupted.
    """
    with _sharing:  # or one would set back what the other set
        common = torch.get_num_threads()  # from here on this thread's own
        torch.set_num_threads(each)
        last = threading.Thread(target=torch.set_num_threads, args=(common,))
        try:
            last.start()
        except RuntimeError:  # too many threads are better than other people's number changed
            torch.set_num_threads(common)
        else:
            last.join()
