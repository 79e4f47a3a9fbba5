"""Several processes: the store of one, whoever dies and however often they are started again."""

import os
import subprocess
import sys
from pathlib import Path

import kill_nets
import pytest
from run_helpers import loaded, pictures, rows

from attribkit.models.loading import load_model
from attribkit.runs import Plan, run
from attribkit.runs.ranks import Ranks, ranks
from attribkit.store import open_store
from attribkit.store.layout import rank_files

HERE = Path(__file__).parent


def torchrun(folder, model, ranks=2, restarts=0):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nnodes=1", f"--nproc-per-node={ranks}"]
    command = ["explain", "in", "--model", model, "--method", "gradient,occlusion", "--batch-size", "8", "--out", "out"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE), "PYTHONWARNINGS": "ignore"}
    return subprocess.run(
        [sys.executable, *launcher, f"--max-restarts={restarts}", "-m", "attribkit", *command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture
def whole(tmp_path, monkeypatch, one_thread):
    """The store of one process, of images of which one is damaged."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(kill_nets.Slow, "seconds", 0.0)
    pictures(tmp_path / "in", 52)  # so many that nothing is drawn
    (tmp_path / "in" / "006.png").write_bytes(b"no image")
    run(Plan(["in"], Path("whole"), ("gradient", "occlusion"), batch_size=8, workers=0), load_model("kill_nets:slow"))
    return rows("whole")


def test_two_processes_give_the_store_of_one(tmp_path, whole):
    done = torchrun(tmp_path, "kill_nets:slow")
    assert done.returncode == 1  # one image is damaged: torchrun says it in its own words
    assert done.stdout == "51 images explained, 1 with errors: out (attribkit report out draws them)\n"
    assert "in/006.png: is not an image" in done.stderr
    assert rows("out") == whole
    assert rank_files(Path("out")) == []


def test_a_process_that_fails_stops_the_run_with_its_error_and_a_restart_finishes_it(tmp_path, whole):
    done = torchrun(tmp_path, "kill_nets:full_once", restarts=1)
    assert "the output folder 'out' cannot be written: No space left on device" in done.stderr
    assert 'Traceback (most recent call last):\n  File "' not in done.stderr.split("attribkit: error")[0]
    assert (tmp_path / "full").exists()
    assert (tmp_path / "early").exists()
    assert done.returncode == 1  # the damaged image
    assert done.stdout == "51 images explained, 1 with errors: out (attribkit report out draws them)\n", done.stderr
    for row, expected in zip(rows("out"), whole, strict=True):
        assert row == expected


def test_alone(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with ranks() as team:
        assert team == Ranks(0, 1, 1)
        assert team.leads
        assert team.told("x") == "x"


def test_what_other_ranks_left_is_taken_over(tmp_path, whole, monkeypatch):
    """One that was killed before they were joined; with another number of them it goes on."""
    from attribkit.store.index import Index, index_path
    from attribkit.store.layout import rank_file

    model = load_model("kill_nets:slow")
    plan = Plan(["in"], Path("out"), ("gradient", "occlusion"), batch_size=8, workers=0)
    run(plan, model)
    index = Index(index_path(plan.out), plan.methods)
    other = Index.of_rank(rank_file(plan.out, 3), plan.methods)
    for number in (1, 4, 6):  # as if a rank had done them, and nobody else anything
        for table, key in (("results", "batch"), ("finished", "number")):
            for row in index.connection.execute(f"SELECT * FROM {table} WHERE {key} = ?", (number,)).fetchall():
                other.connection.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", row)
    index.connection.execute("DELETE FROM results")
    index.connection.execute("DELETE FROM finished")
    index.close()
    other.close()
    assert len(open_store("out")) == 0
    assert run(plan, model).done == 4
    assert rows("out") == whole
    assert rank_files(plan.out) == []


def test_a_process_group_that_is_there_is_used(tmp_path, whole):
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        with ranks() as team:
            assert team.count == 1
        assert dist.is_initialized()
    finally:
        dist.destroy_process_group()
    assert loaded().name == "helper"
