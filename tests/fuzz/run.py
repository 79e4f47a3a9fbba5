"""Fuzz attribkit's readers of files that may come from anyone.

Usage: ``python tests/fuzz/run.py [--seconds 600] [--inputs N] [--seed N] [--no-save] [TARGET …]``; without a target all
of them, each for so many seconds. The targets are in ``fuzz_targets.py``; ``fuzz_mutate.py`` changes the files of
``corpus/TARGET``, and those among the changed ones that led to an error nobody had seen before.

A fault is an exception that is none of attribkit's own, a message of several lines, a crash, an input that takes longer
than `TIME` seconds, and memory that grows by more than `MEMORY` bytes. Its input is kept in ``corpus/TARGET``, where
``test_readers.py`` tries it from then on. The exit code is 1 where there was one.
"""

from __future__ import annotations

import argparse
import faulthandler
import hashlib
import json
import os
import random
import re
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from math import inf
from pathlib import Path
from typing import Any

import torch
from fuzz_mutate import mutated
from fuzz_targets import CORPUS, TARGETS, attempt, seeds

TIME = 30
MEMORY = 2**30
POOL = 400
"""So many changed files are kept in memory to be changed further."""


def fuzz(name: str, first: list[bytes], seconds: float, seed: int, folder: Path, most: float = inf) -> None:
    """Fuzz one target in this process from its ``first`` files, and count in ``folder``; it ends at the first fault.

    The inputs depend on the seed alone; ``seconds`` and ``most``, a number of inputs, say where they end.
    """
    draw = random.Random(f"{name} {seed}")
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with open("/proc/self/statm") as file:
        held = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + 4 * MEMORY, resource.RLIM_INFINITY))
    current, at = folder / "current", folder / "work"
    pool = list(first)
    seen: set[str] = set()
    counts = {"inputs": 0, "refused": 0, "errors": 0, "slowest": 0.0}
    end = time.monotonic() + seconds
    while time.monotonic() < end and counts["inputs"] < most:
        data = mutated(draw.choice(first if draw.random() < 0.5 else pool), pool, TARGETS[name].kind, draw)
        current.write_bytes(data)
        at.mkdir()
        began = time.monotonic()
        faulthandler.dump_traceback_later(TIME, exit=True, file=2)
        said = attempt(name, data, at)
        faulthandler.cancel_dump_traceback_later()
        counts["slowest"] = max(counts["slowest"], time.monotonic() - began)
        shutil.rmtree(at)
        counts["inputs"] += 1
        counts["refused"] += bool(said)
        kind = re.sub(r"\d+|'[^']*'|0x\w+", "#", said)[:160].replace(str(at), "")
        if kind not in seen:
            seen.add(kind)
            if len(pool) < POOL:
                pool.append(data)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start) * 1024
        if grown > MEMORY:
            raise MemoryError(f"memory grew by {grown / 2**20:.0f} MB")
        counts["errors"], counts["megabytes"] = len(seen - {""}), grown / 2**20
        if counts["inputs"] % 50 == 0:
            (folder / "counts").write_text(json.dumps(counts))
    (folder / "counts").write_text(json.dumps(counts))


def fuzz_apart(name: str, seconds: float, seed: int, save: bool, most: float = inf) -> dict[str, Any]:
    """Fuzz one target in a process of its own, again from the start after a fault; return what was found."""
    found: dict[str, Any] = {"target": name, "seconds": 0.0, "inputs": 0, "faults": []}
    began, first = time.monotonic(), list(seeds(name).values())
    while (left := seconds - (time.monotonic() - began)) > 0 and found["inputs"] < most and len(found["faults"]) < 5:
        with tempfile.TemporaryDirectory() as text:
            folder = Path(text)
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT)
                    os.dup2(log, 1)
                    os.dup2(log, 2)
                    faulthandler.enable(file=2)
                    torch.set_num_threads(1)
                    warnings.simplefilter("ignore")
                    fuzz(name, first, left, seed + len(found["faults"]), folder, most - found["inputs"])
                    code = 0
                except BaseException:
                    os.write(2, traceback.format_exc().encode("utf-8", "replace"))
                finally:
                    os._exit(code)
            _, status = os.waitpid(child, 0)
            counts = json.loads((folder / "counts").read_text()) if (folder / "counts").exists() else {}
            found["inputs"] += counts.pop("inputs", 0)
            found.update(counts)
            if status != 0:
                data = (folder / "current").read_bytes() if (folder / "current").exists() else b""
                found["faults"].append(_kept(name, data, (folder / "log").read_text("utf-8", "replace"), save))
    found["seconds"] = time.monotonic() - began
    return found


def _kept(name: str, data: bytes, log: str, save: bool) -> str:
    path = CORPUS / name / f"fault-{hashlib.sha256(data).hexdigest()[:12]}"
    if save:
        path.write_bytes(data)
    lines = [line for line in log.strip().splitlines() if line.strip()] or ["killed"]
    end = next((line for line in lines if line.startswith(("Fatal", "Timeout"))), lines[-1])
    return f"{path.name}: {end[:300]}\n    " + "\n    ".join(lines[-14:-1])


def main(arguments: list[str] | None = None) -> int:
    """Fuzz as the command line says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--seconds", type=float, default=600.0, metavar="S", help="each")
    parser.add_argument("--inputs", type=int, default=None, metavar="N", help="end after so many files, each")
    parser.add_argument("--seed", type=int, default=None, metavar="N", help="[default: another each time]")
    parser.add_argument("--no-save", action="store_true", help="do not keep what leads to a fault")
    parser.add_argument("--json", action="store_true", help="say what was found as JSON, a line a target")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.targets if name not in TARGETS]
    if unknown:
        parser.error(f"no target is called {unknown[0]!r}: {', '.join(TARGETS)}")
    seed = options.seed if options.seed is not None else int.from_bytes(os.urandom(6), "big")
    faults = 0
    for name in options.targets or TARGETS:
        found = fuzz_apart(name, options.seconds, seed, not options.no_save, options.inputs or inf)
        faults += len(found["faults"])
        if options.json:
            print(json.dumps(found), flush=True)
            continue
        print(
            f"{name:<24} {found['seconds']:5.0f} s, {found['inputs']:>8,} files, {found.get('refused', 0):>8,} refused,"
            f" {found.get('errors', 0):>3} different errors, slowest {found.get('slowest', 0):.2f} s,"
            f" {found.get('megabytes', 0):.0f} MB, {len(found['faults'])} faults",
            flush=True,
        )
        for fault in found["faults"]:
            print(f"  {fault}", flush=True)
    print(f"seed {seed}: {faults} faults" if not options.json else "", flush=True)
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
