"""Data-set runs: against a loop by hand over the same methods, and two processes against one.

Usage: ``OMP_NUM_THREADS=1 python tests/benchmarks/bench_runs.py [--model M] [--images N] [--methods a,b] …``.
The figures go into ``out/bench/runs.json``. Rounds of the two sides alternate, since a machine's speed drifts; beside
images a second by the clock there are CPU seconds an image (of this process and its children), which other work on the
machine disturbs less. The loop by hand loads by a `DataLoader` with as many workers, explains, and throws away.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import sqlite3
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from bench_tools import FOLDER, record
from PIL import Image

import attribkit as ak
from attribkit.images import read_image
from attribkit.runs import Plan, run


class Photographs(torch.utils.data.Dataset):
    def __init__(self, paths, preprocess):
        self.paths, self.preprocess = paths, preprocess

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        return self.preprocess(read_image(self.paths[index]))


def by_hand(loaded, folder, methods, size, workers):
    paths = sorted(folder.iterdir())
    loader = torch.utils.data.DataLoader(Photographs(paths, loaded.preprocess), size, num_workers=workers)
    for inputs in loader:
        for method in methods:
            ak.attribute(loaded.model, inputs, method=method)


def cpu_seconds():
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def timed(work, *args):
    wall, cpu = -time.perf_counter(), -cpu_seconds()
    work(*args)
    return wall + time.perf_counter(), cpu + cpu_seconds()


def against_a_loop(asked, folder, out):
    loaded = ak.load_model(asked.model)
    ours, theirs = [], []
    warm = next(iter(folder.iterdir()))
    for method in asked.methods:
        ak.attribute(loaded.model, loaded.preprocess(read_image(warm))[None], method=method)
    for number in range(asked.rounds):
        shutil.rmtree(out, ignore_errors=True)
        plan = Plan([folder], out, asked.methods, batch_size=asked.batch_size, workers=1)
        sides = [(ours, (run, plan, loaded)), (theirs, (by_hand, loaded, folder, asked.methods, asked.batch_size, 1))]
        for kept, call in sides if number % 2 else sides[::-1]:
            kept.append(timed(*call))
    for name, found in (("attribkit", ours), ("by hand", theirs)):
        record(
            "runs",
            f"{asked.model}, {'+'.join(asked.methods)}: {name}",
            images_per_second=[asked.images / wall for wall, _ in found],
            cpu_seconds_per_image=[cpu / asked.images for _, cpu in found],
        )
    wall, cpu = ([hand[i] / our[i] for our, hand in zip(ours, theirs, strict=True)] for i in (0, 1))
    record(
        "runs", f"{asked.model}, {'+'.join(asked.methods)}: throughput, share of a loop by hand", clock=wall, cpu=cpu
    )
    print(
        f"share of a loop by hand: {statistics.median(wall):.3f} by the clock, {statistics.median(cpu):.3f} by CPU time"
    )


def processes(asked, folder, out):
    rates = {1: [], 2: []}
    for number in range(asked.rounds):
        for count in (1, 2) if number % 2 else (2, 1):
            shutil.rmtree(out, ignore_errors=True)
            launcher = [sys.executable, "-m", "attribkit"]
            if count > 1:
                launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nnodes=1",
                            f"--nproc-per-node={count}", "-m", "attribkit"]  # fmt: skip
            command = ["explain", str(folder), "--model", asked.model, "--method", ",".join(asked.methods), "--out"]
            command += [str(out), "--store", "--batch-size", str(asked.batch_size), "--workers", "0"]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            done = subprocess.run([*launcher, *command], env=environment, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            rates[count].append(steady(out))
    ratios = [two / one for one, two in zip(rates[1], rates[2], strict=True)]
    case = f"{asked.model}, {'+'.join(asked.methods)}: two processes of one thread"
    record("runs", case, one=rates[1], two=rates[2], times=ratios)
    print(f"two processes: {statistics.median(ratios):.2f} times one")


def steady(out):
    """Return batches a second from the first that was finished to the last: loading programs and models is not work."""
    connection = sqlite3.connect(out / "index.sqlite")
    moments = [row[0] for row in connection.execute("SELECT moment FROM finished ORDER BY moment")]
    connection.close()
    return (len(moments) - 1) / (moments[-1] - moments[0])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="timm/tf_efficientnet_lite0")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--methods", type=lambda text: tuple(text.split(",")), default=("gradient",))
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=["loop", "processes"])
    asked = parser.parse_args()
    torch.set_num_threads(1)
    folder, out = FOLDER / "runs-images", FOLDER / "runs-store"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for number in range(asked.images):
        pixels = np.random.default_rng(number).integers(0, 256, (60, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((640, 480)).save(folder / f"{number:04d}.jpg")
    if asked.only != "processes":
        against_a_loop(asked, folder, Path(out))
    if asked.only != "loop":
        processes(asked, folder, Path(out))
    shutil.rmtree(folder)
    shutil.rmtree(out)


if __name__ == "__main__":
    main()
