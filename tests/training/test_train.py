"""The trainer: it learns, resumes bit for bit, shares batches, and refuses what cannot work."""

import csv
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import killed
import numpy as np
import pytest
import together
import torch
from nets import Listed, idx_folder, recipe, stripes, tiny, write_idx
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from attribkit.errors import CheckpointError, ImageError, InputError, UnknownNameError
from attribkit.training import Machine, Recipe, TrainingError, load_run, loop, train

HERE = Path(__file__).parent


def equal(first, second):
    one, two = load_file(first), load_file(second)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_it_learns_and_keeps_what_it_did(data, tmp_path):
    lines = []
    asked = recipe(epochs=8, lr=0.05)
    result = train(data, tmp_path / "run", asked, network=tiny(), snapshots=(0, 8), say=lines.append, command="x")
    assert result.rows[0]["train_error"] > 0.1
    assert result.test["top1"] == result.test["top1_ten_crops"] == 0.0
    assert result.test["images"] == 24
    assert len(lines) == 9
    with open(tmp_path / "run" / "log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["val_error"]) for row in rows] == [row["val_error"] for row in result.rows]
    kept = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert kept == result.rows
    with safe_open(result.weights, "pt") as file:
        about = json.loads(file.metadata()["attribkit"])
    assert about == json.loads((tmp_path / "run" / "run.json").read_text()) == result.about
    assert about["recipe"]["lr"] == 0.05
    assert about["command"] == "x"
    assert about["data_config"]["crop_pct"] == 10 / 12
    last = load_file(tmp_path / "run" / "snapshots" / "epoch-008.safetensors")
    weights = load_file(result.weights)
    assert all(torch.equal(last[name], weights[name].half()) for name in weights)
    first = load_file(tmp_path / "run" / "snapshots" / "epoch-000.safetensors")
    assert torch.equal(first["fc.weight"], tiny().fc.weight.detach().half())
    with Image.open(tmp_path / "run" / "curves.png") as curves:
        assert curves.width > 100


def test_the_same_run_twice_is_the_same(data, tmp_path):
    weights = [train(data, tmp_path / name, recipe(), network=tiny(), test=False).weights for name in "ab"]
    assert equal(*weights)
    other = train(data, tmp_path / "c", recipe(seed=6), network=tiny(), test=False).weights
    assert not equal(weights[0], other)


def test_threads_that_prepare_batches_change_nothing(data, tmp_path):
    runs = [train(data, tmp_path / str(n), recipe(), network=tiny(), machine=Machine(workers=n)) for n in (0, 3)]
    assert equal(*(run.weights for run in runs))


@pytest.mark.parametrize("step", [0, 3, 5, 11, 14])
def test_a_stopped_run_goes_on_bit_for_bit(step, data, tmp_path, monkeypatch):
    whole = train(data, tmp_path / "whole", recipe(), network=tiny())

    class Stop(Exception):
        pass

    done = []
    plain = loop.Run._step

    def failing(self, *args):
        if len(done) == step:
            raise Stop
        done.append(1)
        return plain(self, *args)

    monkeypatch.setattr(loop.Run, "_step", failing)
    with pytest.raises(Stop):
        train(data, tmp_path / "cut", recipe(), network=tiny(), machine=Machine(checkpoint_steps=2))
    monkeypatch.undo()
    lines = []
    rest = train(data, tmp_path / "cut", recipe(), network=tiny(seed=99), resume=True, say=lines.append)
    assert "goes on after" in lines[0]
    assert equal(whole.weights, rest.weights)
    untimed = [{k: v for k, v in row.items() if "second" not in k} for row in rest.rows]
    assert untimed == [{k: v for k, v in row.items() if "second" not in k} for row in whole.rows]


def _run(script, *args, env=None, **kw):
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[1])]),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, str(HERE / script), *map(str, args)]
    return subprocess.Popen(command, env={**environment, **(env or {})}, stdout=subprocess.PIPE, text=True, **kw)


def ended(process):
    """Wait for a process; return its exit code."""
    process.communicate(timeout=120)
    return process.returncode


def test_a_run_killed_at_random_moments_ends_with_the_same_weights(data, tmp_path):
    whole = killed.run(data, tmp_path / "whole")
    rng = random.Random(3)
    for _ in range(2):
        process = _run("killed.py", data, tmp_path / "cut")
        assert process.stdout.readline() == "alive\n"  # an epoch is done, or the run goes on
        time.sleep(rng.random() * 0.15)
        process.send_signal(signal.SIGKILL)
        assert ended(process) == -signal.SIGKILL
    assert not (tmp_path / "cut" / "weights.safetensors").exists()
    assert equal(whole.weights, killed.run(data, tmp_path / "cut").weights)
    assert equal(*(tmp_path / name / "snapshots" / "epoch-002.safetensors" for name in ("whole", "cut")))


def test_ctrl_c_leaves_a_run_that_goes_on(data, tmp_path):
    whole = train(data, tmp_path / "whole", recipe(), network=tiny())
    before = signal.getsignal(signal.SIGINT)
    network = tiny()
    calls = []

    def interrupt(*_):
        calls.append(1)
        if len(calls) == 8:
            os.kill(os.getpid(), signal.SIGINT)

    network.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(data, tmp_path / "cut", recipe(), network=network)
    assert len(calls) == 8  # the step was finished, none was begun
    assert signal.getsignal(signal.SIGINT) is before
    assert equal(whole.weights, train(data, tmp_path / "cut", recipe(), network=tiny(), resume=True).weights)


def test_two_processes_train_as_one(tmp_path):
    data = idx_folder(tmp_path / "data", train=48, test=6)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    both = [
        _run("together.py", data, tmp_path / "two", env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(2)
    ]
    together.run(data, tmp_path / "one")
    assert [ended(process) for process in both] == [0, 0]
    one, two = (
        [json.loads(line) for line in (tmp_path / n / "log.jsonl").read_text().splitlines()] for n in ("one", "two")
    )
    for key in ("train_loss", "train_error", "val_loss", "val_error"):
        assert [row[key] for row in two] == pytest.approx([row[key] for row in one], rel=1e-5)
    weights = [load_file(tmp_path / n / "weights.safetensors") for n in ("one", "two")]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-4, atol=1e-6)


def test_another_configuration_is_refused_by_name(data, tmp_path):
    train(data, tmp_path / "run", recipe(epochs=1), network=tiny())
    with pytest.raises(TrainingError, match=r"holds another run: lr was 0.01, is 0.02; give the same"):
        train(data, tmp_path / "run", recipe(epochs=1, lr=0.02), network=tiny())
    other = idx_folder(tmp_path / "other", train=45)
    with pytest.raises(TrainingError, match=r"data was '.*data .train.', is '.*other .train.'; images was"):
        train(other, tmp_path / "run", recipe(epochs=1), network=tiny())
    with pytest.raises(TrainingError, match="is in epoch 1; only 0 are asked for"):
        train(data, tmp_path / "run", recipe(epochs=0), network=tiny())


def test_a_run_within_an_epoch_is_not_taken_for_a_finished_one(data, tmp_path, monkeypatch):
    steps = []

    def failing(self, *args):
        steps.append(1)
        if len(steps) == 9:  # the third step of the second epoch
            raise KeyboardInterrupt
        return plain(self, *args)

    plain = loop.Run._step
    monkeypatch.setattr(loop.Run, "_step", failing)
    with pytest.raises(KeyboardInterrupt):
        train(data, tmp_path / "run", recipe(epochs=2), network=tiny(), machine=Machine(checkpoint_steps=1))
    monkeypatch.undo()
    with pytest.raises(TrainingError, match="is in epoch 2; only 1 are asked for"):
        train(data, tmp_path / "run", recipe(epochs=1), network=tiny())


def test_more_epochs_may_be_added(data, tmp_path):
    train(data, tmp_path / "run", recipe(epochs=1), network=tiny())
    more = train(data, tmp_path / "run", recipe(epochs=3), network=tiny())
    assert equal(more.weights, train(data, tmp_path / "whole", recipe(epochs=3), network=tiny()).weights)


def test_a_finished_run_is_not_done_again(data, tmp_path):
    first = train(data, tmp_path / "run", recipe(epochs=1), network=tiny())
    stamp = first.weights.stat().st_mtime_ns
    again = train(data, tmp_path / "run", recipe(epochs=1), network=tiny())
    assert again == first
    assert first.weights.stat().st_mtime_ns == stamp


def test_foreign_files_are_not_overwritten(data, tmp_path):
    (tmp_path / "weights.safetensors").write_bytes(b"mine")
    with pytest.raises(TrainingError, match=r"holds weights\.safetensors but no run"):
        train(data, tmp_path, recipe(), network=tiny())
    (tmp_path / "weights.safetensors").unlink()
    with pytest.raises(TrainingError, match="holds no run to resume"):
        train(data, tmp_path, recipe(), network=tiny(), resume=True)
    (tmp_path / "state.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    with pytest.raises(TrainingError, match=r"state\.safetensors: is not the state of a run"):
        train(data, tmp_path, recipe(), network=tiny())


def test_a_loss_that_is_no_number_ends_the_run(data, tmp_path):
    with pytest.raises(TrainingError, match=r"the loss is (nan|inf) in epoch 1, step \d+: training diverged"):
        train(data, tmp_path / "run", recipe(lr=1e30, max_norm=0.0), network=tiny())


def test_annealing_ends_a_run_at_the_least_rate(data, tmp_path):
    result = train(
        data, tmp_path / "run", recipe(epochs=9, lr=1e-9, patience=0, anneal=0.1, min_lr=1e-11), network=tiny()
    )
    rates = [row["lr"] for row in result.rows]
    assert len(rates) < 9
    assert rates[-1] == pytest.approx(1e-11)
    assert sorted(rates, reverse=True) == rates
    assert train(data, tmp_path / "run", recipe(
        epochs=9, lr=1e-9, patience=0, anneal=0.1, min_lr=1e-11), network=tiny()).rows == result.rows  # fmt: skip


@pytest.mark.parametrize("mean", ["channel", "pixel"])
def test_inputs_are_bytes_less_the_training_mean(mean, data, tmp_path):
    seen = []
    network = tiny()
    network.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()) if module.training else None)
    train(data, tmp_path / "run", recipe(epochs=1, mean=mean, size=12, flip=False, batch_size=64), network=network)
    assert len(seen) == 1
    assert -128 <= float(seen[0].min()) < float(seen[0].max()) <= 256
    assert seen[0].mean(dim=(0, 1) if mean == "pixel" else None).abs().max() < 1e-3
    assert (tmp_path / "run" / "mean.safetensors").exists() == (mean == "pixel")


def test_any_timm_model_trains_from_image_files(tmp_path):
    for label, colour in (("red", (250, 10, 10)), ("blue", (10, 10, 250))):
        (tmp_path / "data" / label).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (40 + number, 33), colour).save(tmp_path / "data" / label / f"{number}.png")
    asked = Recipe(
        model="resnet10t", size=32, resize=36, epochs=2, batch_size=4, model_options={"in_chans": 3}, val_fraction=0.25
    )
    result = train(str(tmp_path / "data"), tmp_path / "run", asked, machine=Machine(workers=2))
    assert result.about["labels"] == ["blue", "red"]
    assert result.about["data_config"]["mean"] == pytest.approx((0.485, 0.456, 0.406), abs=1e-6)
    assert result.test is None
    assert load_file(result.weights)["fc.weight"].shape == (2, 512)


def test_bfloat16_autocast_runs_and_learns(data, tmp_path):
    result = train(data, tmp_path / "run", recipe(epochs=8, lr=0.05), network=tiny(), machine=Machine(amp="bf16"))
    assert result.test["top1"] <= 0.1
    assert load_file(result.weights)["fc.weight"].dtype is torch.float32


def pictures(counts):
    names = tuple(f"c{k}" for k in range(len(counts)))
    classes = [k for k, count in enumerate(counts) for _ in range(count)]
    return Listed([Image.new("L", (12, 12), 20 * k) for k in classes], classes, names)


@pytest.mark.parametrize(
    ("source", "kw", "message"),
    [
        (pictures([3, 1]), {}, "class 'c1' has one image; at least 2 are needed, to hold one out"),
        (pictures([3]), {}, "has one class"),
        (pictures([3, 0]), {}, "class 'c1' has no image"),
        (pictures([3, 3]), {"val_fraction": 0}, "val_fraction=0 leaves no image to validate with"),
        ("/nowhere", {}, "there is no such folder"),
        (pictures([3, 3]), {"size": 13}, "size=13 must be at most resize=12"),
        (pictures([3, 3]), {"epochs": -1}, "epochs=-1 must be at least 0"),
        (pictures([3, 3]), {"lr": float("nan")}, "lr=nan must be a finite number"),
        (pictures([3, 3]), {"momentum": 1.0}, "momentum=1.0 must be below 1"),
        (pictures([3, 3]), {"init": "xavier"}, "init='xavier' must be one of paper, scaled, he, model"),
        (pictures([3, 3]), {"batch_size": True}, "batch_size must be an int"),
    ],
)
def test_bad_input_is_one_line(source, kw, message, tmp_path):
    with pytest.raises(InputError) as caught:
        train(source, tmp_path / "run", recipe(**kw), network=tiny(channels=3))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("resnet1", {}, "unknown model 'resnet1': did you mean 'resnet18'"),
        ("zfnet", {"widht": 0.1}, "zfnet has no option 'widht': did you mean 'width'?"),
    ],
)
def test_unknown_models_and_options(model, options, message, data, tmp_path):
    with pytest.raises(UnknownNameError, match=message.replace("?", r"\?")):
        train(data, tmp_path / "run", recipe(model=model, model_options=options))


def test_an_image_too_small_for_the_network(data, tmp_path):
    with pytest.raises(InputError, match="too small: nothing of it would be left at pool5"):
        train(data, tmp_path / "run", recipe())


def test_a_damaged_image_is_named(tmp_path):
    for label in "ab":
        (tmp_path / "data" / label).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (12, 12)).save(tmp_path / "data" / label / f"{number}.png")
    held_out = tmp_path / "data" / "b" / "1.png"
    whole = held_out.read_bytes()
    held_out.write_bytes(b"\x89PNG\r\n")
    given = (str(tmp_path / "data"), tmp_path / "run")
    with pytest.raises(ImageError, match=r"b.1\.png: is not an image"):  # before the training: nothing is begun
        train(*given, recipe(), network=tiny(channels=3, classes=2))
    assert not (tmp_path / "run").exists()
    message = r"b.1\.png.*; the run is kept in .*run: mend the image, and the same command goes on$"
    with pytest.raises(ImageError, match=message):  # where validation images are not kept in memory: after an epoch
        train(*given, recipe(), network=tiny(channels=3, classes=2), machine=Machine(cache=0))
    held_out.write_bytes(whole)
    assert train(*given, recipe(), network=tiny(seed=9, channels=3, classes=2)).rows
    (tmp_path / "data" / "b" / "0.png").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(ImageError, match=r"b.0\.png"):  # while the mean is measured
        train(given[0], tmp_path / "new", recipe(mean="pixel"), network=tiny(channels=3, classes=2))
    assert not (tmp_path / "new").exists()


def test_validation_images_of_other_classes_are_refused(data, tmp_path):
    with pytest.raises(InputError, match=r"its classes .* are not those of"):
        train(data, tmp_path / "run", recipe(), network=tiny(), val=pictures([2, 2]))


def shaded(folder, **parts):
    """Write a folder of parts, each with images of one shade a class."""
    for part, names in parts.items():
        for name in names:
            (folder / part / name).mkdir(parents=True)
            for number in range(2):
                Image.new("RGB", (12, 12), (20 * len(name),) * 3).save(folder / part / name / f"{number}.png")
    return str(folder)


@pytest.mark.parametrize("names", [("bag",), ("bag", "shoe", "zebra"), ("bag", "zebra")])
def test_test_images_of_other_classes_are_refused_before_training(names, tmp_path):
    data = shaded(tmp_path / "data", train=("bag", "shoe"), test=names)
    network = tiny(channels=3, classes=2)
    with pytest.raises(InputError) as caught:
        train(data, tmp_path / "run", recipe(), network=network)
    own = ", ".join(map(repr, names))
    assert str(caught.value) == (
        f"{data} (test): its classes {own} are not those of {data} (train): 'bag', 'shoe'; each part needs the same"
        " classes (--no-test leaves it out)"
    )
    assert not (tmp_path / "run").exists()
    assert train(data, tmp_path / "run", recipe(epochs=1), network=network, test=False).test is None


def test_test_images_without_classes_are_refused_before_training(tmp_path):
    data = shaded(tmp_path / "data", train=("bag", "shoe"))
    (tmp_path / "data" / "test").mkdir()
    Image.new("RGB", (12, 12)).save(tmp_path / "data" / "test" / "a.png")
    with pytest.raises(InputError, match=r"\(test\): its images have no classes .* \(--no-test leaves it out\)"):
        train(data, tmp_path / "run", recipe(), network=tiny(channels=3, classes=2))
    assert not (tmp_path / "run").exists()


def test_a_test_part_may_lack_the_last_of_numbered_classes(tmp_path):
    data = idx_folder(tmp_path / "data")
    images, labels = stripes(24, seed=2)
    write_idx(tmp_path / "data" / "t10k-images-idx3-ubyte", images[labels < 2])
    write_idx(tmp_path / "data" / "t10k-labels-idx1-ubyte.gz", labels[labels < 2])
    assert train(data, tmp_path / "run", recipe(epochs=1), network=tiny()).test["images"] == 16


def test_a_bad_test_image_does_not_cost_the_run(tmp_path):
    data = shaded(tmp_path / "data", train=("bag", "shoe"), test=("bag", "shoe"))
    bad = tmp_path / "data" / "test" / "shoe" / "1.png"
    whole = bad.read_bytes()
    bad.write_bytes(b"\x89PNG\r\n")
    message = r"shoe.1\.png.*; the run is finished and kept in .*run, without test errors: mend .* same command again"
    with pytest.raises(ImageError, match=message):
        train(data, tmp_path / "run", recipe(), network=tiny(channels=3, classes=2))
    kept = load_file(tmp_path / "run" / "weights.safetensors")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["test"] is None
    with pytest.raises(ImageError, match="finished and kept"):  # nor does the second time
        train(data, tmp_path / "run", recipe(), network=tiny(seed=9, channels=3, classes=2))
    bad.write_bytes(whole)
    lines = []
    done = train(data, tmp_path / "run", recipe(), network=tiny(seed=9, channels=3, classes=2), say=lines.append)
    assert "test error" in lines[-1]
    assert not any(line.startswith("epoch") for line in lines)  # nothing was trained again
    again = load_file(done.weights)
    assert all(torch.equal(again[name], kept[name]) for name in kept)
    fresh = train(data, tmp_path / "fresh", recipe(), network=tiny(channels=3, classes=2))
    assert done.test == fresh.test
    assert json.loads((tmp_path / "run" / "run.json").read_text())["test"] == fresh.test
    with safe_open(done.weights, "pt") as file:
        assert json.loads(file.metadata()["attribkit"])["test"] == fresh.test


def test_held_out_images_are_not_trained_with(tmp_path):
    rng = np.random.default_rng(0)
    marks = rng.permutation(40)
    source = Listed([Image.new("L", (12, 12), int(m)) for m in marks], [i % 2 for i in range(40)], ("a", "b"))
    trained, validated = set(), set()
    network = tiny(channels=1, classes=2)
    network.register_forward_pre_hook(
        lambda module, args: (trained if module.training else validated).update(args[0][:, 0, 0, 0].tolist())
    )
    train(source, tmp_path / "run", recipe(
        epochs=2, mean="channel", val_fraction=0.3, model_options={"in_chans": 1}), network=network)  # fmt: skip
    assert (len(trained), len(validated)) == (28, 12)
    assert not trained & validated


def test_a_run_may_start_from_the_weights_of_another(data, tmp_path):
    options = {"width": 0.02, "in_chans": 1}
    asked = {"model_options": options, "size": 48, "resize": 48}
    first = train(data, tmp_path / "first", recipe(epochs=1, **asked))
    taken = train(data, tmp_path / "second", recipe(epochs=0, weights=str(first.weights), **asked))
    assert equal(first.weights, taken.weights)
    first.weights.rename(tmp_path / "moved.safetensors")  # what it started from is not needed to load it
    assert torch.equal(load_run(tmp_path / "second").model.fc8.weight, load_file(taken.weights)["fc8.weight"])
    (tmp_path / "moved.safetensors").rename(first.weights)
    assert not equal(first.weights, train(data, tmp_path / "drawn", recipe(epochs=0, **asked)).weights)
    wider = {**asked, "model_options": {**options, "width": 0.1}}
    with pytest.raises(CheckpointError, match="does not fit zfnet"):
        train(data, tmp_path / "third", recipe(weights=str(first.weights), **wider))


def test_filters_are_scaled_back_after_every_step(data, tmp_path):
    """The last step's filters too are at most of the RMS asked for, and without a limit they exceed it."""

    def rms(limit, name):
        weights = load_file(train(data, tmp_path / name, recipe(epochs=1, max_norm=limit), network=tiny()).weights)
        return weights["conv.weight"].square().mean((1, 2, 3)).sqrt().max().item()

    free = rms(0.0, "free")
    assert rms(free / 2, "limited") <= free / 2 * (1 + 1e-6)
