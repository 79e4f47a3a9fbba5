"""Every fault costs what it must and nothing more; model, inputs and random generators are untouched after each."""

import contextlib
import errno
import functools
import os
import signal
import tempfile

import pytest
import torch
from PIL import Image
from run_helpers import SIDE, five, loaded, picture, pictures, preprocess, reasons, rows
from traces import assert_same, state

from attribkit.builtin.occlusion import Occlusion
from attribkit.errors import InputError, LoadingWarning
from attribkit.runs import Plan, loading, run
from attribkit.runs.computing import is_out_of_memory
from attribkit.store import StoreError, open_store
from attribkit.store.layout import SHARDS

METHODS = ("gradient", "occlusion")


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    return


@pytest.fixture
def model():
    """A model in no uniform state, which must come back from every test as it was."""
    found = five()
    found[1].eval()
    found[0].weight.requires_grad_(False)
    found[5].weight.grad = torch.ones_like(found[5].weight)
    before = state(found)
    yield found
    assert_same(state(found), before)


def explain(source, out, model, prepare=preprocess, **changes):
    usual = {"options": {"occlusion": {"window": 8, "stride": 8}}, "batch_size": 4, "workers": 0, "methods": METHODS}
    plan = Plan(**{"sources": [source], "out": out, **usual, **changes})
    told = []
    outcome = run(
        plan, loaded(model, prepare), failed=lambda image, reason: told.append((os.path.basename(image), reason))
    )
    return outcome, told


def both(reason):
    return dict.fromkeys(METHODS, reason)


# --- images


def test_bad_images_cost_themselves(tmp_path, model, monkeypatch):
    source, out = pictures(tmp_path / "in", 9), tmp_path / "out"
    whole = (source / "001.png").read_bytes()
    (source / "001.png").write_bytes(whole[: len(whole) // 2])
    (source / "002.png").write_bytes(b"")
    Image.new("RGB", (300, 300)).save(source / "003.png")
    os.unlink(source / "004.png")
    os.mkfifo(source / "004.png")
    (source / "005.png").unlink()
    (source / "005.png").symlink_to(source / "nowhere")  # as one that vanished after it was listed
    (source / "006.png").unlink()
    (source / "006.png").symlink_to("/proc/self/mem")  # it opens, and reading it fails
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    outcome, told = explain(source, out, model)
    assert (outcome.images, outcome.explained, outcome.failed) == (9, 3, 6)
    words = ["truncated", "empty", "decompression bomb", "is a pipe", "no such file", "empty|cannot be read"]
    found = reasons(out)
    for (name, reason), number, word in zip(told, range(1, 7), words, strict=True):
        assert name == f"{number:03d}.png"
        assert any(part in reason for part in word.split("|")), reason
        assert found[str(source / name)] == both(reason)
    good = [row for row in rows(out) if row["status"] == "done"]
    for number in (0, 7, 8):
        assert [os.path.basename(row["image"]) for row in good].count(f"{number:03d}.png") == 2


def test_an_image_that_vanishes_while_the_run_is_on(tmp_path, model):
    source = pictures(tmp_path / "in", 6)

    def prepare(image):
        (source / "005.png").unlink(missing_ok=True)
        return preprocess(image)

    assert explain(source, tmp_path / "out", model, prepare)[1] == [("005.png", "no such file")]


def test_preprocessing_that_raises_or_returns_something_else(tmp_path, model):
    source = pictures(tmp_path / "in", 6)
    wrong = iter([MemoryError(), ValueError("too odd"), 3, torch.zeros(3, 4), torch.full((3, SIDE, SIDE), torch.nan)])

    def prepare(image):
        torch.rand(1)  # draws from the caller's generator
        found = next(wrong, None)
        if isinstance(found, Exception):
            raise found
        return preprocess(image) if found is None else found

    outcome, told = explain(source, tmp_path / "out", model, prepare)
    assert outcome.explained == 1
    assert [reason for _, reason in told] == [
        "preprocessing: MemoryError",
        "preprocessing: ValueError: too odd",
        "preprocessing returned int, not a float tensor [C, H, W]",
        "preprocessing returned torch.float32 (3, 4), not a float tensor [C, H, W]",
        "preprocessing returned NaN or infinite values",
    ]


# --- methods and models


@contextlib.contextmanager
def occlusion(monkeypatch, change):
    """Let occlusion go through ``change(values, inputs, model)``, which may raise."""
    original = Occlusion.attribute

    @functools.wraps(original)
    def attribute(self, model, inputs, target, **options):
        values, extras = original(self, model, inputs, target, **options)
        return change(values, inputs, model), extras

    with monkeypatch.context() as patched:
        patched.setattr(Occlusion, "attribute", attribute)
        yield


def dark(inputs):
    return inputs.mean((1, 2, 3)) < -1


@pytest.fixture
def some_dark(tmp_path):
    source = pictures(tmp_path / "in", 9)
    for number in (2, 4):
        picture(source / f"{number:03d}.png", number, brightest=20)
    return source


def test_nan_maps(tmp_path, model, some_dark, monkeypatch):
    with occlusion(
        monkeypatch, lambda values, inputs, model: values.where(~dark(inputs)[:, None, None, None], torch.nan)
    ):
        outcome, _ = explain(some_dark, tmp_path / "out", model)
    assert (outcome.explained, outcome.failed) == (9, 2)
    reason = {"occlusion": f"the map holds NaN or infinite values ({3 * SIDE**2} of {3 * SIDE**2})"}
    assert reasons(tmp_path / "out") == {str(some_dark / f"{number:03d}.png"): reason for number in (2, 4)}
    _same_but_for_the_failed(tmp_path, model, some_dark)


def _same_but_for_the_failed(tmp_path, model, source):
    explain(source, tmp_path / "sound", model)
    for row, sound in zip(rows(tmp_path / "out"), rows(tmp_path / "sound"), strict=True):
        if row["status"] == "done":
            del row["offset"], sound["offset"]
            assert row == sound


def test_a_method_that_raises_on_some_images(tmp_path, model, some_dark, monkeypatch):
    def change(values, inputs, model):
        torch.rand(1)
        if bool(dark(inputs).any()):
            model.train()
            raise ZeroDivisionError("too\ndark")
        return values

    with occlusion(monkeypatch, change):
        outcome, told = explain(some_dark, tmp_path / "out", model)
    assert (outcome.explained, outcome.failed) == (9, 2)
    assert told == [(f"{number:03d}.png", "occlusion: ZeroDivisionError: too dark") for number in (2, 4)]


def test_an_input_error_of_some_images_does_not_stop_the_run(tmp_path, model, some_dark, monkeypatch):
    def change(values, inputs, model):
        if bool(dark(inputs).any()):
            raise InputError("too dark")
        return values

    with occlusion(monkeypatch, change):
        outcome, _ = explain(some_dark, tmp_path / "out", model)
    assert outcome.failed == 2


def test_a_model_that_raises_or_answers_nan_on_some_images(tmp_path, some_dark):
    class Moody(torch.nn.Module):
        def __init__(self, answer):
            super().__init__()
            self.net, self.answer = five().eval(), answer

        def forward(self, x):
            if self.answer == "raises" and bool(dark(x).any()):
                raise LookupError("no such shelf")
            return self.net(x) + torch.where(dark(x), torch.nan, 0.0)[:, None]

    for name in ("raises", "nan"):
        moody = Moody(name)
        before = state(moody)
        outcome, told = explain(some_dark, tmp_path / name, moody, methods=("gradient",), options={})
        assert_same(state(moody), before)
        assert outcome.failed == 2
        expected = "the model's forward raised LookupError: no such shelf" if name == "raises" else "the score is nan"
        assert all(reason.startswith(expected) for _, reason in told), told


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), MemoryError(), "real"])
def test_out_of_memory_halves_the_batch(tmp_path, model, monkeypatch, error):
    source, sizes = pictures(tmp_path / "in", 8), []

    def change(values, inputs, model):
        sizes.append(len(inputs))
        if len(inputs) > 2:
            if error == "real":
                torch.empty(2**56, dtype=torch.uint8)
            raise error
        return values

    with occlusion(monkeypatch, change):
        outcome, told = explain(source, tmp_path / "out", model, batch_size=8)
    assert (outcome.explained, told) == (8, [])
    assert sizes == [8, 4, 2, 2, 4, 2, 2]
    assert {record.batch for record in open_store(tmp_path / "out")} == {0}


def test_no_memory_for_one_image_costs_that_image(tmp_path, model, some_dark, monkeypatch):
    def change(values, inputs, model):
        if bool(dark(inputs).any()):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return values

    with occlusion(monkeypatch, change):
        outcome, told = explain(some_dark, tmp_path / "out", model)
    assert outcome.failed == 2
    assert all("occlusion: out of memory even alone" in reason for _, reason in told)


def test_what_an_out_of_memory_error_is():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**56, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))


# --- the disk


@pytest.mark.parametrize("what", ["the shard", "the index"])
def test_a_full_disk_is_a_clean_stop(tmp_path, model, monkeypatch, what):
    source, out = pictures(tmp_path / "in", 12), tmp_path / "out"
    explain(source, tmp_path / "whole", model)
    calls = []

    def full(original):
        def called(*args):
            calls.append(0)
            if len(calls) == 2:
                raise OSError(errno.ENOSPC, "No space left on device")
            return original(*args)

        return called

    with monkeypatch.context() as patched:
        if what == "the shard":
            patched.setattr("attribkit.runs.loop.write_shard", full(loop_write_shard()))
        else:
            _small_index(patched)
        with pytest.raises(StoreError, match=r"cannot be written: .*(No space|full).*the same command goes on"):
            explain(source, out, model)
    assert not list((out / SHARDS).glob(".*"))
    done = rows(out)
    assert done == rows(tmp_path / "whole")[: len(done)]
    explain(source, out, model)
    assert rows(out) == rows(tmp_path / "whole")


def loop_write_shard():
    from attribkit.store.shards import write_shard

    return write_shard


def _small_index(patched):
    """Let SQLite have no room for the second batch."""
    from attribkit.store.index import Index

    original = Index.finish

    def finish(self, number, *args):
        if number == 1:
            pages = self.connection.execute("PRAGMA page_count").fetchone()[0]
            self.connection.execute(f"PRAGMA max_page_count = {pages}")
            args = ([result._replace(error="x" * 50_000) for result in args[0]], *args[1:])
        return original(self, number, *args)

    patched.setattr(Index, "finish", finish)


def test_output_that_cannot_be_written(tmp_path, model, monkeypatch):
    source = pictures(tmp_path / "in", 3)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StoreError, match=r"the output folder '.*file/out' cannot be written: File exists$"):
        explain(source, tmp_path / "file" / "out", model)

    def refuse(*args, **kwargs):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    with pytest.raises(StoreError, match=r"cannot be written: Read-only file system$"):
        explain(source, tmp_path / "new" / "out", model)
    assert not (tmp_path / "new").exists()


# --- processes that load images


def test_a_worker_that_is_killed_by_chance_costs_nothing(tmp_path, model):
    source, once = pictures(tmp_path / "in", 8), tmp_path / "once"
    parent = os.getpid()

    def prepare(image):
        if os.getpid() != parent and not once.exists():
            once.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return preprocess(image)

    explain(source, tmp_path / "whole", model)
    outcome, told = explain(source, tmp_path / "out", model, prepare, workers=2)
    assert once.exists()
    assert (outcome.explained, told) == (8, [])
    assert rows(tmp_path / "out") == rows(tmp_path / "whole")


def test_an_image_that_kills_its_worker_is_found(tmp_path, model):
    source = pictures(tmp_path / "in", 8)
    fatal = (source / "005.png").read_bytes()
    parent = os.getpid()

    def prepare(image):
        found = preprocess(image)
        if os.getpid() != parent and torch.equal(found, preprocess(Image.open(source / "005.png"))):
            os.kill(os.getpid(), signal.SIGSEGV)
        return found

    assert fatal
    before = signal.getsignal(signal.SIGCHLD)
    outcome, told = explain(source, tmp_path / "out", model, prepare, workers=1, batch_size=2)
    assert (outcome.explained, outcome.failed) == (7, 1)
    assert told == [("005.png", loading._KILLED)]
    after = signal.getsignal(signal.SIGCHLD)
    assert after == before or after.__module__.startswith("torch.")  # as torch leaves it


def test_where_no_worker_lives_long_the_run_goes_on_without(tmp_path, model, monkeypatch):
    source = pictures(tmp_path / "in", 8)

    def dies(*args):
        raise loading._WorkerDied
        yield

    by_workers = loading._by_workers
    singles = []

    def only_single(images, batches, workers, pinned):
        batches = list(batches)
        if len(batches) == 1 and len(batches[0].places) == 1:
            singles.append(batches[0].places[0])
            return by_workers(images, iter(batches), workers, pinned)
        return dies()

    monkeypatch.setattr(loading, "_by_workers", only_single)
    with pytest.warns(LoadingWarning, match="killed 3 times, by no one image"):
        outcome, told = explain(source, tmp_path / "out", model, workers=1, batch_size=2)
    assert (outcome.explained, told) == (8, [])
    assert len(singles) == 2 * loading.DEATHS


def test_retrying_what_failed(tmp_path, model):
    source, out = pictures(tmp_path / "in", 10), tmp_path / "out"
    explain(source, tmp_path / "whole", model)
    (source / "005.png").rename(source / "away")  # as when a network folder is away for a while

    (source / "005.png").symlink_to(source / "nowhere")
    assert explain(source, out, model)[0].failed == 1
    (source / "005.png").unlink()
    (source / "away").rename(source / "005.png")
    outcome, _ = explain(source, out, model)
    assert (outcome.failed, outcome.done) == (1, 0)
    outcome, _ = explain(source, out, model, retry=True)
    assert (outcome.failed, outcome.done) == (0, 1)
    assert rows(out) == rows(tmp_path / "whole")


def test_a_device_that_is_unusable_stops_the_run(monkeypatch):
    from attribkit.errors import ModelError
    from attribkit.runs.computing import check_device

    error = RuntimeError("CUDA error: device-side assert triggered")
    check_device(torch.device("cpu"), error)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    check_device(torch.device("cuda"), error)

    def lost(device):
        raise error

    monkeypatch.setattr(torch.cuda, "synchronize", lost)
    with pytest.raises(ModelError, match="cuda is unusable after RuntimeError: CUDA error: device-side assert"):
        check_device(torch.device("cuda"), error)


def test_too_little_shared_memory_is_done_without(tmp_path, model, monkeypatch):
    source = pictures(tmp_path / "in", 7)
    (source / "003.png").write_bytes(b"")
    explain(source, tmp_path / "whole", model)

    def full(self):
        (tmp_path / "asked").touch()
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1_2>: No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)  # in the workers too: they are forked
    _, told = explain(source, tmp_path / "out", model, workers=1)
    assert (tmp_path / "asked").exists()
    assert told == [("003.png", "the file is empty (0 bytes)")]
    assert rows(tmp_path / "out") == rows(tmp_path / "whole")
