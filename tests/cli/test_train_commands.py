"""The commands train, accuracy, ablation and probe, as they are typed."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from cli_helpers import error_of
from PIL import Image
from safetensors import safe_open

import attribkit as ak
from attribkit.app.shelf import Shelf
from attribkit.errors import UnknownNameError

SMALL = ("--model-option", "hidden=64", "--width", "0.02", "--size", "64", "--resize", "66", "--init", "scaled")
TINY = (*SMALL, "--epochs", 1, "--batch-size", 4)


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    """Small tensors; see the fixture."""


@pytest.fixture
def data(tmp_path):
    """Images of two plain colours, 6 of each to train with and 2 to test with."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 6), ("test", 2)):
        for label, colour in (("dark", 30), ("light", 220)):
            folder = tmp_path / "images" / part / label
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(colour - 20, colour + 20, (40, 44, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path / "images"


def test_train_goes_on_and_says_so(run, data, tmp_path):
    done = run("train", "--data", data, "--out", "run", *TINY, "--snapshots", "0,1")
    assert done.exit_code == 0, done.output
    assert "epoch 1: lr 0.01, training loss" in done.stdout
    assert "1 epochs, validation error" in done.stdout
    names = {"curves.png", "log.csv", "log.jsonl", "run.json", "snapshots", "state.safetensors", "weights.safetensors"}
    assert set(os.listdir(tmp_path / "run")) == names
    with safe_open(tmp_path / "run" / "weights.safetensors", "pt") as file:
        about = json.loads(file.metadata()["attribkit"])
    assert about["command"].startswith("attribkit train --data ")
    assert about["recipe"]["model_options"] == {"hidden": 64, "width": 0.02}
    assert about["test"]["images"] == 4
    more = run("train", "--data", data, "--out", "run", *SMALL, "--epochs", 2, "--batch-size", 4, "--snapshots", "0,1")
    assert more.stdout.startswith("run: goes on after epoch 1, step 0")
    assert "epoch 2" in more.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere"], "data 'nowhere': there is no such folder"),
        (["--data", "fashion-sample"], "fashion-sample has no part 'train'; it has test"),
        (["--data", "DATA", "--model", "resnet19"], "unknown model 'resnet19': did you mean 'resnet18'"),
        (["--data", "DATA", "--size", "300"], "size=300 must be at most resize=256"),
        (["--data", "DATA", "--size", "20", "--resize", "20"], "too small: nothing of it would be left at pool5"),
        (["--data", "DATA", "--lr", "-1"], "lr=-1.0 must be a finite number from 0"),
        (["--data", "DATA", "--model-option", "depth=3"], "zfnet has no option 'depth'"),
        (["--data", "DATA", "--snapshots", "9", "--epochs", "2"], "snapshots: epoch 9 is not among 0…2"),
        (["--data", "DATA", "--device", "cuda:77"], "device 'cuda:77' is not there"),
        (["--data", "DATA", "--resume"], "holds no run to resume"),
        (["--data", "DATA", "--amp", "fp16", "--device", "cpu"], "amp='fp16' needs a GPU; a CPU takes bf16"),
    ],
)
def test_train_refuses_in_one_line(arguments, message, run, data):
    given = [str(data) if word == "DATA" else word for word in arguments]
    assert message in error_of(run("train", "--out", "run", *given))


@pytest.mark.parametrize("arguments", [["--model-option", "width"], ["--snapshots", "1,x"], ["--epochs", "many"]])
def test_train_wrong_usage(arguments, run, data):
    assert run("train", "--data", data, "--out", "run", *arguments).exit_code == 2


def test_another_configuration_is_refused(run, data):
    arguments = ["train", "--data", data, "--out", "run", *SMALL, "--epochs", 1, "--batch-size", 4, "--no-test"]
    assert run(*arguments).exit_code == 0
    message = error_of(run(*arguments, "--momentum", "0.8"))
    assert message.startswith(
        "run holds another run: momentum was 0.9, is 0.8; give the same options, or another --out"
    )


def test_ctrl_c_ends_with_130_and_leaves_a_run(data, tmp_path):
    command = [sys.executable, "-m", "attribkit", "train", "--data", str(data), "--out", "run", *SMALL, "--no-test"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, "--epochs", "100000", "--batch-size", "4"], cwd=tmp_path, env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline().startswith("epoch 1")
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.strip().splitlines()[-1] == "attribkit: interrupted"
    with safe_open(tmp_path / "run" / "state.safetensors", "pt") as file:
        assert json.loads(file.metadata()["attribkit"])["position"]["epoch"] >= 1


def test_accuracy(run, tmp_path):
    found = run("accuracy", "--model", "zfnet-fashion", "--data", "fashion-sample", "--limit", 6)
    assert found.exit_code == 0, found.output
    assert "zfnet-fashion on fashion-sample (test), 6 images, 1 crop" in found.stdout
    assert found.stderr == ""
    as_json = run(
        "accuracy", "--model", "zfnet-fashion", "--data", "fashion-sample", "--limit", 2, "--crops", 10, "--json"
    )
    numbers = json.loads(as_json.stdout)
    assert numbers["images"] == 2
    assert numbers["crops"] == 10
    assert 0 <= numbers["top5"] <= numbers["top1"] <= 1


def test_accuracy_of_random_weights_and_of_other_classes(run, data):
    torch.manual_seed(0)
    (data / "test" / "dark").rename(data / "test" / "crane, bird")
    (data / "test" / "light").rename(data / "test" / "n01440764")  # the tench
    other = run("accuracy", "--model", "timm/resnet10t", "--data", data)
    assert "class 'crane, bird' is not among the 1000 class names of timm/resnet10t" in other.stderr.splitlines()[-1]
    assert other.exit_code == 1
    (data / "test" / "crane, bird").rename(data / "test" / "goldfish")
    found = run("accuracy", "--model", "timm/resnet10t", "--data", data)
    assert f"timm/resnet10t on {data} (test), 4 images, 1 crop" in found.stdout
    assert "has random weights" in found.stderr


COMMANDS = (
    ("accuracy", "--data", "DATA"),
    ("diagnose", "--data", "DATA"),
    ("evolution", "out/mine", "--layer", "conv1", "--data", "DATA"),
    ("explain", "DATA"),
    ("inspect",),
    ("features", "--layer", "conv1", "--data", "DATA"),
    ("probe", "--layer", "conv1", "--data", "DATA"),
    ("occlusion-study", "0", "--data", "DATA"),
)


def test_a_run_is_a_model(run, data, tmp_path, monkeypatch):
    assert (
        run("train", "--data", data, "--out", "out/mine", *TINY, "--mean", "pixel", "--snapshots", "0,1").exit_code == 0
    )
    kept = json.loads((tmp_path / "out" / "mine" / "run.json").read_text())["test"]
    for crops, key in ((1, "top1"), (10, "top1_ten_crops")):
        found = run("accuracy", "--model", "run/out/mine", "--data", data, "--crops", crops, "--json")
        assert json.loads(found.stdout)["top1"] == kept[key]
    for command in COMMANDS:
        for name in ("out/mine", "out/mine/weights.safetensors"):
            given = [str(data) if word == "DATA" else word for word in command]
            message = error_of(run(*given, "--model", name))
            assert message == f"unknown model '{name}': did you mean 'run/{name}'?"
    with pytest.raises(UnknownNameError, match="did you mean 'run/out/mine'"):
        ak.load_model("out/mine")
    monkeypatch.chdir("out")
    with pytest.raises(UnknownNameError, match="did you mean 'run/mine'"):
        ak.load_model("mine")
    with pytest.raises(UnknownNameError, match="unknown model 'mine'") as caught:
        Shelf().get("mine")  # the app's visitors learn of no folders
    assert "run" not in str(caught.value)
    monkeypatch.chdir("..")
    (tmp_path / "out" / "mine" / "run.json").unlink()
    assert "run/" not in error_of(run("accuracy", "--model", "out/mine", "--data", data)).split(";")[0]


def test_evolution_takes_the_runs_own_model(run, data, tmp_path):
    assert run("train", "--data", data, "--out", "mine", *TINY, "--snapshots", "0,1").exit_code == 0
    snapshots = tmp_path / "mine" / "snapshots"
    tables = []
    for place, given in enumerate((["mine"], ["mine/snapshots"], sorted(snapshots.iterdir()))):
        done = run("evolution", *given, "--data", data, "--layer", "conv1", "--channel", 0, "--out", f"o{place}")
        assert done.exit_code == 0, done.output
        tables.append((tmp_path / f"o{place}" / "evolution-conv1.csv").read_text())
    assert tables[0].count("\n") == 3
    assert tables[0] == tables[1] == tables[2]
    named = run(
        "evolution", "mine", "--model", "run/mine", "--data", data, "--layer", "conv1", "--channel", 0, "--out", "p"
    )
    assert named.exit_code == 0, named.output
    assert (tmp_path / "p" / "evolution-conv1.csv").read_text() == tables[0]
    (tmp_path / "mine" / "weights.safetensors").unlink()
    message = error_of(run("evolution", "mine", "--data", data, "--layer", "conv1", "--out", "q"))
    assert message.startswith("mine: holds no finished run to take the model from")
    assert not (tmp_path / "q").exists()


def test_train_refuses_a_test_part_of_other_classes(run, data, tmp_path):
    (data / "test" / "dark").rename(data / "test" / "dusk")
    message = error_of(run("train", "--data", data, "--out", "run", *TINY))
    assert message.startswith(f"{data} (test): its classes 'dusk', 'light' are not those of {data} (train): 'dark'")
    assert not (tmp_path / "run").exists()
    assert run("train", "--data", data, "--out", "run", *TINY, "--no-test").exit_code == 0


def test_probe_prints_and_writes(run, data, tmp_path):
    found = run(
        "probe", "--model", "timm/resnet10t", "--data", data, "--layer", "act1", "--layer", "global_pool",
        "--per-class", "2,all", "--folds", 2, "--max-features", 2000, "--out", "probe",
    )  # fmt: skip
    assert found.exit_code == 0, found.output
    rows = found.stdout.splitlines()
    assert rows[0].split() == ["layer", "features", "images", "a", "class", "error,", "%", "folds"]
    assert [row.split()[0] for row in rows[1:]] == ["act1", "act1", "global_pool", "global_pool"]
    assert [row.split()[2] for row in rows[1:]] == ["2", "all"] * 2
    assert rows[-1].split()[3] == "0.00"  # dark and light
    assert set(os.listdir(tmp_path / "probe")) == {"probe.csv", "probe.png"}
    message = error_of(run("probe", "--model", "timm/resnet10t", "--data", data, "--layer", "act1", "--per-class", "7"))
    assert "7 a class to train with need 7" in message
    assert run("probe", "--model", "m", "--data", data, "--layer", "l", "--per-class", "few").exit_code == 2


def test_ablation_prints_a_table(run, data, tmp_path):
    found = run(
        "ablation", "--data", data, "--out", "out", *SMALL, "--epochs", 1, "--batch-size", 4, "--variant", "full",
        "--variant", "no-6-7",
    )  # fmt: skip
    assert found.exit_code == 0, found.output
    table = found.stdout.splitlines()[-3:]
    assert table[0].split()[0] == "variant"
    assert [row.split()[0] for row in table[1:]] == ["full", "no-6-7"]
    assert {"ablation.csv", "ablation.png", "full", "no-6-7"} == set(os.listdir(tmp_path / "out"))
    assert "did you mean 'full'" in error_of(run("ablation", "--data", data, "--out", "out", "--variant", "ful"))
