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
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return {
        "processor": next(names, "") or platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def summary(values):
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def keep(benchmark, change):
    """Put what was measured into out/bench/BENCHMARK.json: ``change`` gets what is there, and changes it."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{benchmark}.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    known["machine"] = machine()
    change(known)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(known, indent=1) + "\n")
    part.replace(path)


def keep_row(benchmark, row, case):
    """Keep a row, in the place of one that is the same in all that ``case`` names."""

    def change(known):
        others = [old for old in known.get("rows", []) if any(old.get(key) != row.get(key) for key in case)]
        known["rows"] = [*others, row]

    keep(benchmark, change)


def record(benchmark, case, **figures):
    """Print a case's figures (lists: median, smallest and largest) and keep them."""
    row = {name: summary(values if isinstance(values, list) else [values]) for name, values in figures.items()}
    words = [f"{n} {v['median']:.3g} ({v['min']:.3g} to {v['max']:.3g})" for n, v in row.items()]
    print(f"\n{case}: {'; '.join(words)}; {torch.get_num_threads()} threads, {machine()['processor']}")
    keep(benchmark, lambda known: known.setdefault("cases", {}).update({case: row}))


def kept(model, work):
    """Return how many bytes are kept for the way back, the model's own tensors aside."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    storages = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage  # held, or its address could become another's
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        work()
    return sum(storage.nbytes() for storage in storages.values())
