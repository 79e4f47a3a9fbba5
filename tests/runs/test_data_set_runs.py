"""Runs in one process: what they give, how they go on, and what they refuse."""

import os
import signal
import sqlite3
import subprocess
import sys

import pytest
import torch
from run_helpers import archive, five, loaded, picture, pictures, png, preprocess, reasons, rows
from torch import nn

import attribkit as ak
from attribkit.errors import InputError
from attribkit.runs import Plan, run
from attribkit.runs.batches import batch_size_for
from attribkit.store import StoreError, open_store
from attribkit.store.index import index_path
from attribkit.store.layout import SHARDS

METHODS = ("gradient", "occlusion")
OPTIONS = {"occlusion": {"window": 8, "stride": 4}}


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    return


def plan(source, out, **changes):
    usual = {"methods": METHODS, "options": OPTIONS, "batch_size": 4, "workers": 0}
    return Plan(**{"sources": [source], "out": out, **usual, **changes})


def test_the_store_holds_what_a_loop_by_hand_gives(tmp_path):
    model = loaded()
    outcome = run(plan(pictures(tmp_path / "in", 10), tmp_path / "out"), model)
    assert (outcome.images, outcome.explained, outcome.failed, outcome.done) == (10, 10, 0, 3)
    store = open_store(tmp_path / "out")
    records = iter(store)
    for start in (0, 4, 8):
        paths = sorted((tmp_path / "in").iterdir())[start : start + 4]
        inputs = torch.stack([preprocess(_opened(path)) for path in paths])
        found = {name: ak.attribute(model.model, inputs, name, **OPTIONS.get(name, {})) for name in METHODS}
        for i, path in enumerate(paths):
            for name in METHODS:
                record = next(records)
                assert (record.image, record.method) == (str(path), name)
                assert record.target == int(found[name].target[i])
                assert record.score == float(found[name].scores[i])
                assert torch.equal(record.values, found[name].values[i])
                assert record.extras.keys() == found[name].extras.keys()
                for key, extra in record.extras.items():
                    assert torch.equal(extra, found[name].extras[key][i])
    assert store.note("coverage gradient")["method"] == "gradient"
    assert set(store.seconds(0)) == set(METHODS)


def _opened(path):
    from PIL import Image

    return Image.open(path)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(tmp_path, workers):
    source = pictures(tmp_path / "in", 9)
    for out, number in (("a", 0), ("b", workers)):
        run(plan(source, tmp_path / out, batch_size=2, workers=number), loaded())
    assert rows(tmp_path / "a") == rows(tmp_path / "b")


def test_sources_of_every_kind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pictures(tmp_path / "in", 2)
    archive(tmp_path / "x.tar", [("a.png", png(0)), ("b.png", png(1))])
    (tmp_path / "L.txt").write_text("in/001.png\nin/000.png\n")
    run(plan("in", tmp_path / "out", sources=["in", "x.tar", "in/*1.png", "L.txt"], methods=("gradient",)), loaded())
    found = {record.image: record.values for record in open_store(tmp_path / "out")}
    assert list(found) == ["in/000.png", "in/001.png", "x.tar/a.png", "x.tar/b.png"]  # each once
    assert torch.equal(found["in/000.png"], found["x.tar/a.png"])


def test_half_and_shrink(tmp_path):
    source, model = pictures(tmp_path / "in", 5), loaded()
    with torch.no_grad():
        model.model[5].weight *= 1e-9  # the maps are far below what float16 can hold
        model.model[5].bias *= 1e-9
    run(plan(source, tmp_path / "full"), model)
    run(plan(source, tmp_path / "half", half=True), model)
    run(plan(source, tmp_path / "small", shrink=5, half=True), model)
    for full, half, small in zip(*(open_store(tmp_path / name) for name in ("full", "half", "small")), strict=True):
        largest = float(full.values.abs().max())
        assert largest > 0
        assert half.values.dtype == torch.float32
        assert float((half.values - full.values).abs().max()) <= largest * 2**-11
        assert small.values.shape == (3, 4, 4)
        means = torch.nn.functional.avg_pool2d(full.values, 5, ceil_mode=True, count_include_pad=False)
        assert float((small.values - means).abs().max()) <= float(means.abs().max()) * 2**-10
    kept = _kinds(tmp_path / "half")
    assert kept == {"F16"}


def _kinds(store):
    from safetensors import safe_open

    kinds = set()
    for shard in (store / SHARDS).iterdir():
        with safe_open(shard, framework="pt") as file:
            kinds |= {file.get_slice(name).get_dtype() for name in file.keys() if name.endswith("values")}  # noqa: SIM118
    return kinds


def test_units_and_images_of_several_sizes(tmp_path):
    for i, size in enumerate([(16, 16), (20, 16), (16, 16), (20, 16), (24, 24)]):
        image = _opened(picture(tmp_path / "in" / f"{i}.png", i))
        image.resize(size).save(tmp_path / "in" / f"{i}.png")
    unit = ak.Unit("1", 2)
    model = nn.Sequential(*list(five().eval())[:3], nn.AdaptiveAvgPool2d(4), *list(five().eval())[4:])
    methods = ("gradient", "deconvnet")
    run(plan(tmp_path / "in", tmp_path / "out", target=unit, methods=methods, options={}), loaded(model))
    for record in open_store(tmp_path / "out"):
        inputs = preprocess(_opened(record.image))[None]
        expected = ak.attribute(model, inputs, record.method, target=unit)
        assert record.target == expected.target
        torch.testing.assert_close(record.values, expected.values[0])


# --- going on


def counting(calls, stop_at=0):
    """Return a preprocessing that notes its calls, and is interrupted at one of them."""

    def prepare(image):
        calls.append(0)
        if len(calls) == stop_at:
            raise KeyboardInterrupt
        return preprocess(image)

    return prepare


@pytest.mark.parametrize(("at", "finished"), [(2, 0), (6, 1), (10, 2)])
def test_an_interrupted_run_goes_on(tmp_path, at, finished):
    source, out = pictures(tmp_path / "in", 11), tmp_path / "out"
    (source / "005.png").write_bytes(b"no image")
    run(plan(source, tmp_path / "whole"), loaded())
    with pytest.raises(KeyboardInterrupt):
        run(plan(source, out), loaded(preprocess=counting([], at)))
    assert out.exists() == (finished > 0)  # what was begun in vain is not left behind
    if finished:
        assert rows(out) == rows(tmp_path / "whole")[: finished * 8]
    rest = []
    outcome = run(plan(source, out), loaded(preprocess=counting(rest)))
    assert len(rest) == 10 - (0, 4, 7)[finished]  # nothing is done twice
    assert (outcome.done, outcome.failed) == (3 - finished, 1)
    assert rows(out) == rows(tmp_path / "whole")
    again = []
    assert run(plan(source, out), loaded(preprocess=counting(again))).failed == 1
    assert again == []


@pytest.mark.parametrize("harm", ["cut", "gone", "zeroed"])
def test_a_shard_that_was_lost_is_made_again(tmp_path, harm):
    source, out = pictures(tmp_path / "in", 6), tmp_path / "out"
    run(plan(source, out), loaded())
    before = rows(out)
    shard = max((out / SHARDS).iterdir())
    contents = shard.read_bytes()
    (out / SHARDS / f".{shard.name}.99.tmp").write_bytes(b"of a killed run")
    if harm == "gone":
        shard.unlink()
    else:
        shard.write_bytes(contents[:-40] + b"\0" * 40 * (harm == "zeroed"))
    with pytest.raises(StoreError) if harm != "zeroed" else _nothing():
        rows(out)
    assert run(plan(source, out), loaded()).done == 1
    assert rows(out) == before
    assert len(list((out / SHARDS).iterdir())) == 2


def _nothing():
    import contextlib

    return contextlib.nullcontext()


def test_a_list_that_grew(tmp_path):
    source, out = pictures(tmp_path / "in", 6), tmp_path / "out"
    run(plan(source, out), loaded())
    before = rows(out)
    picture(source / "0000.png", 77)  # sorts before the others: what is finished keeps its place
    (source / "003.png").unlink()  # what is finished stays
    outcome = run(plan(source, out), loaded())
    assert (outcome.images, outcome.done) == (7, 1)
    assert rows(out)[:-2] == before
    assert rows(out)[-1]["image"] == str(source / "0000.png")


def test_another_run_is_refused_and_each_difference_named(tmp_path, monkeypatch):
    source, out = pictures(tmp_path / "in", 5), tmp_path / "out"
    run(plan(source, out), loaded())
    before = rows(out)
    other = loaded(five().eval())
    with torch.no_grad():
        other.model[0].bias[0] += 1
    cases = [
        ({"options": {"occlusion": {"window": 8, "stride": 2}}}, loaded(), "occlusion.options.stride was 4 and is 2"),
        ({"methods": ("gradient",), "options": {}}, loaded(), "methods.occlusion was .* and is absent"),
        ({"methods": METHODS[::-1]}, loaded(), "the order of methods was gradient, occlusion and is occlusion, "),
        ({"target": 3}, loaded(), "target was 'auto' and is 3"),
        ({"half": True}, loaded(), "maps was 'float32, shrunk by 1' and is 'float16, shrunk by 1'"),
        ({"batch_size": 3}, loaded(), "batch size was 4 and is 3"),
        ({"threads": 7}, loaded(), "threads was 1 and is 7"),
        ({}, other, "weights_sha256 was '.*' and is '"),
    ]  # fmt: skip
    for changes, model, words in cases:
        with pytest.raises(StoreError, match=words):
            run(plan(source, out, **changes), model)
    monkeypatch.setattr("attribkit.runs.plan.__version__", "9.9")
    with pytest.raises(StoreError, match=r"attribkit was '.*' and is '9\.9'"):
        run(plan(source, out), loaded())
    assert rows(out) == before
    assert run(plan(source, out, batch_size=None), five_of_this_version(monkeypatch)).done == 0


def five_of_this_version(monkeypatch):
    monkeypatch.undo()
    return loaded()


def test_a_relative_source_belongs_to_its_folder(tmp_path, monkeypatch):
    pictures(tmp_path / "a" / "in", 5)
    pictures(tmp_path / "b" / "in", 5)
    monkeypatch.chdir(tmp_path / "a")
    run(plan("in", tmp_path / "out", methods=("gradient",)), loaded())
    monkeypatch.chdir(tmp_path / "b")
    with pytest.raises(StoreError, match="working directory was"):
        run(plan("in", tmp_path / "out", methods=("gradient",)), loaded())


def test_what_is_wrong_for_every_image_leaves_nothing(tmp_path):
    source = pictures(tmp_path / "in", 6)
    for changes, words in (
        ({"target": 9}, "class 9 is out of range"),
        ({"target": ak.Unit("nope", 0)}, "nope"),
        ({"options": {"occlusion": {"window": 0}}}, "window"),
    ):
        with pytest.raises(InputError, match=words):
            run(plan(source, tmp_path / "new" / "out", **changes), loaded())
        assert not (tmp_path / "new").exists()


def test_of_every_method_one_that_refuses_all_images_fails_alone(tmp_path):
    source, wrong = pictures(tmp_path / "in", 5), {"occlusion": {"window": 0}}
    outcome = run(plan(source, tmp_path / "out", options=wrong, every=True), loaded())
    assert (outcome.explained, outcome.failed) == (5, 5)
    assert {record.method for record in open_store(tmp_path / "out").failures()} == {"occlusion"}
    with pytest.raises(InputError, match="class 9"):  # all refuse
        run(plan(source, tmp_path / "new", target=9, every=True), loaded())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"workers": -1}, "workers must be at least 0"),
        ({"shrink": 0}, "shrink must be at least 1"),
        ({"sources": []}, "sources must name"),
        ({"methods": ()}, "methods is empty"),
    ],
)
def test_bad_plans(tmp_path, changes, words):
    with pytest.raises(InputError, match=words):
        plan(tmp_path, tmp_path, **changes)


def test_the_batch_size_follows_the_memory(monkeypatch):
    inputs = torch.zeros(1, 3, 16, 16)
    for free, size in ((2**40, 16), (2**24, 16), (2**20, 4), (1, 1)):
        monkeypatch.setattr("attribkit.runs.batches._free_bytes", lambda device, free=free: free)
        assert batch_size_for(five().eval(), inputs) == size
    monkeypatch.setattr("attribkit.runs.batches._free_bytes", lambda device: 2**20)
    assert batch_size_for(five().eval(), inputs, processes=4) == 1


def test_a_measured_batch_size_is_kept(tmp_path, monkeypatch):
    source = pictures(tmp_path / "in", 6)
    monkeypatch.setattr("attribkit.runs.batches._free_bytes", lambda device: 2**20)
    run(plan(source, tmp_path / "out", batch_size=None), loaded())
    monkeypatch.undo()
    store = open_store(tmp_path / "out")
    assert store.note("batch size") == 4
    picture(source / "more.png", 50)
    assert run(plan(source, tmp_path / "out", batch_size=None), loaded()).done == 1
    assert store[-1].batch == 2


# --- being killed


KILLED = """
import os, signal, sys, pathlib
import torch
sys.path.insert(0, {here!r})
import run_helpers as h
from attribkit.runs import Plan, run
from attribkit.runs import loop
torch.set_num_threads(1)
at, how = int(sys.argv[3]), sys.argv[4]
steps = 0
def step(original):
    def stepped(*args, **kwargs):
        global steps
        for moment in (0, 1):
            steps += 1
            if steps == at:
                os.kill(os.getpid(), signal.SIGKILL)
            if moment == 0:
                found = original(*args, **kwargs)
        return found
    return stepped
loop.write_shard = step(loop.write_shard)
loop.Index.finish = step(loop.Index.finish)
loop.Computer.compute = step(loop.Computer.compute)
run(Plan([sys.argv[1]], pathlib.Path(sys.argv[2]), ("gradient",), batch_size=4, workers=int(how)), h.loaded())
"""


def test_killed_around_every_step_it_goes_on(tmp_path):
    source, out = pictures(tmp_path / "in", 9), tmp_path / "out"
    run(plan(source, tmp_path / "whole", methods=("gradient",), options={}), loaded())
    script = tmp_path / "killed.py"
    script.write_text(KILLED.format(here=os.path.dirname(__file__)))
    whole = rows(tmp_path / "whole")
    for number, at in enumerate((4, 9, 6)):  # after writing, before writing, after noting
        arguments = [str(source), str(out), str(at), str(number % 2)]
        done = subprocess.run([sys.executable, str(script), *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert rows(out) == whole[: len(rows(out))]
    run(plan(source, out, methods=("gradient",), options={}), loaded())
    assert rows(out) == whole


def test_the_index_is_sound(tmp_path):
    run(plan(pictures(tmp_path / "in", 5), tmp_path / "out"), loaded())
    connection = sqlite3.connect(index_path(tmp_path / "out"))
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
    assert reasons(tmp_path / "out") == {}
