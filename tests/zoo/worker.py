"""The process that checks models: ``python -m zoo.worker PART JOURNAL NAME…``; it ends early to give memory back."""

from __future__ import annotations

import gc
import resource
import sys
import traceback
from pathlib import Path

import torch

from . import meta, real
from .journal import Journal

LIMIT = 20 * 2**30  # bytes the process may take; beyond, the model at hand fails with MemoryError
ENOUGH = 6 * 2**30  # bytes kept after a model (by the allocator) at which a fresh process goes on
AGAIN = 75  # exit status that asks for one
PARTS = {"meta": meta.check, "real": real.check}


def resident() -> int:
    """Return how many bytes of memory this process holds; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * resource.getpagesize()


def main(part: str, path: str, *names: str) -> int:
    """Check models one after the other and note each result."""
    torch.set_num_threads(1)  # more would wait for each other where other processes run
    resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT))
    journal = Journal(Path(path))
    for place, name in enumerate(names, 1):
        try:
            record = PARTS[part](name)
        except Exception as error:
            traceback.print_exc(limit=-6)
            record = {"name": name, "failures": [f"{type(error).__name__}: {error}"[:500]]}
        journal.add(record)
        problems = record["failures"]
        word = f"FAILED {len(problems)}: {'; '.join(problems)[:300]}" if problems else "ok"
        print(f"[{place}/{len(names)}] {part} {name} {record.get('seconds', '')} s {word}", flush=True)
        gc.collect()
        if resident() > ENOUGH and place < len(names):
            return AGAIN
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
