"""Kill `attribkit explain` and `attribkit features` again and again at random moments, and compare what they finish.

Usage: ``python tests/runs/kill_many.py [--kills 50] [--seed 0] [--folder DIR]``. A quarter of the kills each go to
explain and features, in one process and in two. Each run is killed (SIGKILL, SIGTERM or SIGINT, of everything or of one
rank), now and then its last shard is cut off as by a power loss, and the same command is started again until it ends.
What it leaves is compared record by record, to the last bit, with a run that nobody disturbed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

IMAGES = 60
"""So many that explain writes the store alone: drawing pictures would take most of the time."""


def arguments(command: str, folder: Path, out: Path) -> list[str]:
    usual = ["--model", "kill_nets:slow", "--out", str(out)]
    if command == "explain":
        options = ["--option", "occlusion.window=8", "--option", "occlusion.stride=8", "--batch-size", "4"]
        return ["explain", str(folder / "in"), "--method", "gradient,occlusion", *options, *usual]
    return ["features", "--data", str(folder / "in"), "--layer", "2", "--top", "3", *usual]


def start(command: str, folder: Path, out: Path, ranks: int) -> subprocess.Popen[bytes]:
    launcher = [sys.executable, "-m", "attribkit"]
    if ranks > 1:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nnodes=1",
                    f"--nproc-per-node={ranks}", "-m", "attribkit"]  # fmt: skip
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(HERE), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]),
        "PYTHONWARNINGS": "ignore",
    }
    log = open(f"{out}.log", "ab")  # noqa: SIM115 (the process keeps it)
    return subprocess.Popen([*launcher, *arguments(command, folder, out)], stdout=log, stderr=log, env=environment,
                            start_new_session=True)  # fmt: skip


def kill(process: subprocess.Popen[bytes], draw: random.Random) -> str:
    """Kill the run in some way, and wait for its first process."""
    number = draw.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
    children = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=False
    ).stdout.split()
    one = bool(children) and draw.random() < 0.4
    if one:
        os.kill(int(draw.choice(children)), number)  # one rank, or a process that loads images
    else:
        process.send_signal(number)
    how = f"{signal.Signals(number).name} to {'a child' if one else 'the parent'}"
    try:
        process.wait(60 if number != signal.SIGKILL or one else 5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    return how


def cut_last_shard(out: Path) -> bool:
    """Cut off the last shard, as a power loss may."""
    shards = sorted(out.glob("shards/*.safetensors"), key=lambda path: path.stat().st_mtime_ns)
    if not shards:
        return False
    contents = shards[-1].read_bytes()
    shards[-1].write_bytes(contents[: len(contents) // 2])
    return True


def found(command: str, out: Path) -> object:
    """Return everything that a run left, ready to be compared."""
    from run_helpers import rows

    if command == "explain":
        return rows(out)
    files = {path.name: path.read_bytes() for path in sorted(out.glob("*.safetensors"))}
    return json.loads((out / "features.json").read_text()), files


def trial(command: str, ranks: int, kills: int, folder: Path, draw: random.Random) -> list[str]:
    """Kill one run so often, let it end, and return how it was killed; it raises where something differs."""
    whole = folder / f"whole-{command}"
    began = time.monotonic()
    if not whole.exists():
        assert start(command, folder, whole, 1).wait() == 0, Path(f"{whole}.log").read_text()
        folder.joinpath(f"{command}.seconds").write_text(str(time.monotonic() - began))
    seconds = float(folder.joinpath(f"{command}.seconds").read_text()) * (1.3 if ranks > 1 else 1)
    out = folder / f"{command}-{ranks}"
    shutil.rmtree(out, ignore_errors=True)
    hows: list[str] = []
    while len(hows) < kills:
        process = start(command, folder, out, ranks)
        time.sleep(seconds * (0.25 + 0.75 * draw.random()))
        if process.poll() is not None:  # it ended in the meantime: on with a fresh one
            assert process.returncode == 0, Path(f"{out}.log").read_text()[-3000:]
            assert found(command, out) == found(command, whole), f"{command} differs after {hows}"
            shutil.rmtree(out)
            continue
        how = kill(process, draw)
        if command == "explain" and draw.random() < 0.25 and cut_last_shard(out):
            how += ", last shard cut"
        hows.append(how)
        print(f"{command}, {ranks} process(es), kill {len(hows)}: {how}", flush=True)
    for _ in range(3):  # the last kill may have left ranks that are just ending
        if (code := start(command, folder, out, ranks).wait()) == 0:
            break
    assert code == 0, Path(f"{out}.log").read_text()[-3000:]
    assert found(command, out) == found(command, whole), f"{command} in {ranks} process(es) differs after {hows}"
    return hows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("out/kills"))
    asked = parser.parse_args()
    from run_helpers import pictures

    folder = asked.folder.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    pictures(folder / "in", IMAGES)
    draw = random.Random(asked.seed)
    kinds = [(command, ranks) for command in ("explain", "features") for ranks in (1, 2)]
    total = 0
    for number, (command, ranks) in enumerate(kinds):
        count = asked.kills // 4 + (number < asked.kills % 4)
        total += len(trial(command, ranks, count, folder, draw))
    print(f"{total} kills: every run ended with what an undisturbed one gives")


if __name__ == "__main__":
    main()
