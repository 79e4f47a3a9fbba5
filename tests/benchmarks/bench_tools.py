"""What the benchmarks share: a stopwatch, and the record of what was measured on which machine."""

from __future__ import annotations

import json
import platform
import statistics
import time
from pathlib import Path

import torch

FOLDER = Path("out/bench")


class Stopwatch:
    """Seconds of a ``with`` block: by the clock, and of the process's CPU time (all threads)."""

    def __enter__(self):
        self.wall, self.cpu = -time.perf_counter(), -time.process_time()
        return self

    def __exit__(self, *exc):
        self.wall += time.perf_counter()
        self.cpu += time.process_time()


def machine():
    return {
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def record(benchmark, case, **figures):
    """Print a case's figures (lists: median, smallest and largest) and put them into out/bench/BENCHMARK.json."""
    row = {}
    for name, values in figures.items():
        values = values if isinstance(values, list) else [values]
        row[name] = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    words = [f"{n} {v['median']:.3g} ({v['min']:.3g} to {v['max']:.3g})" for n, v in row.items()]
    print(f"\n{case}: {'; '.join(words)}; {torch.get_num_threads()} threads, {machine()['processor']}")
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{benchmark}.json"
    known = json.loads(path.read_text()) if path.exists() else {"cases": {}}
    known["machine"] = machine()
    known["cases"][case] = row
    path.write_text(json.dumps(known, indent=1) + "\n")
