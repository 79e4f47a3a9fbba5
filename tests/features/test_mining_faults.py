"""Every fault costs mining the images it concerns; model, inputs and random generators are untouched after each."""

import errno
import os
import signal
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_mining import Noise, equal
from torch import nn
from traces import assert_same, state

from attribkit.datasets import open_images
from attribkit.errors import InputError, ModelError, UnknownNameError
from attribkit.features import galleries, mined, mining
from attribkit.features.mining import mine
from attribkit.models.building import LoadedModel
from attribkit.runs import loading
from attribkit.runs.ranks import Ranks
from attribkit.store import StoreError

SIDE = 12
LAYERS = ["0", "1"]


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    return


def net():
    """A small network of whole numbers: its sums are exact in any order, so that halves give the very same bits."""
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 3))
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.randint(-3, 4, parameter.shape, generator=generator).float()
    return model.eval()


@pytest.fixture
def model():
    """A model in no uniform state, which must come back from every test as it was, the generators too."""
    found = net()
    found[1].train()
    found[0].weight.requires_grad_(False)
    found[2].weight.grad = torch.ones_like(found[2].weight)
    before = state(found)
    yield found
    assert_same(state(found), before)


def preprocess(image):
    return torch.from_numpy(np.asarray(image.convert("L"), dtype=np.float32).copy())[None]


def find(model, source=None, prepare=preprocess, **changes):
    return mine(
        model,
        Noise(40, SIDE) if source is None else source,
        changes.pop("layers", LAYERS),
        preprocess=prepare,
        **changes,
    )


def without(model, left, source=None, prepare=preprocess):
    """Return what is found where some images cannot be read."""
    return find(model, Noise(40, SIDE, bad=left), prepare)


def same_lists(got, expected):
    for name, layer in got.layers.items():
        for part in ("values", "images", "positions"):
            assert torch.equal(getattr(layer.top, part), getattr(expected.layers[name].top, part)), (name, part)


# --- images


def test_bad_images_cost_themselves(tmp_path, model, monkeypatch):
    folder = tmp_path / "in"
    folder.mkdir()
    noise = Noise(20, SIDE)
    for i in range(20):
        noise.load(i).save(folder / f"{i:03d}.png")
    names = [folder / f"{i:03d}.png" for i in range(20)]
    source = open_images(folder)
    whole = names[1].read_bytes()
    names[1].write_bytes(whole[: len(whole) // 2])
    names[2].write_bytes(b"")
    Image.new("L", (300, 300)).save(names[3])
    for name, target in ((names[4], None), (names[6], "/proc/self/mem")):
        name.unlink()
        os.mkfifo(name) if target is None else name.symlink_to(target)
    names[7].unlink()  # it vanished after it was listed
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    for workers in (0, 1):
        found = find(model, source, workers=workers)
        words = ["truncated", "empty", "decompression bomb", "is a pipe", "empty|cannot be read", "no such file"]
        assert [index for index, _ in found.skipped] == [1, 2, 3, 4, 6, 7]
        for (index, reason), word in zip(found.skipped, words, strict=True):
            assert f"{index:03d}.png" in reason
            assert any(part in reason for part in word.split("|")), reason
        same_lists(found, find(model, Noise(20, SIDE, bad=(1, 2, 3, 4, 6, 7))))


def test_a_source_that_raises_what_it_should_not(model):
    class Odd(Noise):
        def load(self, index):
            if index == 3:
                raise KeyError("no such row")
            return super().load(index)

    found = find(model, Odd(40, SIDE))
    assert found.skipped == ((3, "reading: KeyError: 'no such row'"),)
    same_lists(found, without(model, [3]))


def test_preprocessing_that_raises_or_returns_something_else(model):
    wrong = iter([ValueError("too\nodd"), MemoryError(), 3, torch.zeros(3, 4), torch.full((1, SIDE, SIDE), torch.nan)])

    def prepare(image):
        torch.rand(1)  # draws from the caller's generator
        found = next(wrong, None)
        if isinstance(found, Exception):
            raise found
        return preprocess(image) if found is None else found

    found = find(model, prepare=prepare)
    assert [reason for _, reason in found.skipped] == [
        "preprocessing: ValueError: too odd",
        "preprocessing: MemoryError",
        "preprocessing returned int, not a float tensor [C, H, W]",
        "preprocessing returned torch.float32 (3, 4), not a float tensor [C, H, W]",
        "preprocessing returned NaN or infinite values",
    ]
    same_lists(found, without(model, range(5)))


# --- models


class Moody(nn.Module):
    """Does something to the batches in which an image begins with a given pixel."""

    def __init__(self, pixels, does, inner):
        super().__init__()
        self.net, self.pixels, self.does = inner, pixels, does

    def forward(self, x):
        hit = torch.isin(x[:, 0, 0, 0], self.pixels) & (x.flatten(1).abs().sum(1) > 0)
        return self.net(self.does(x, hit))


def moody(does, *indices):
    source = Noise(40, SIDE)
    pixels = torch.stack([preprocess(source.load(i))[0, 0, 0] for i in range(40)])
    chosen = [i for i in range(40) if pixels[i] in pixels[list(indices)]]
    return Moody(pixels[list(indices)], does, net()).eval(), chosen


NET = ["net.0", "net.1"]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_nan_and_infinite_maps(value):
    model, chosen = moody(lambda x, hit: torch.where(hit[:, None, None, None], value, x), 3, 21)
    found = find(model, layers=NET)
    assert [index for index, _ in found.skipped] == chosen
    assert {reason for _, reason in found.skipped} == {"the activations of layer 'net.0' hold NaN or infinite values"}
    expected = find(model, Noise(40, SIDE, bad=chosen), layers=NET)
    same_lists(found, expected)
    assert not set(chosen) & set(found.layers["net.1"].top.images.flatten().tolist())


def test_a_model_that_raises_on_some_images():
    def raises(x, hit):
        torch.rand(1)
        if bool(hit.any()):
            raise LookupError("no such shelf")
        return x

    model, chosen = moody(raises, 3, 21)
    before = state(model)
    found = find(model, layers=NET)
    assert_same(state(model), before)
    reason = "the model's forward raised LookupError: no such shelf"
    assert found.skipped == tuple((index, reason) for index in chosen)
    same_lists(found, find(model, Noise(40, SIDE, bad=chosen), layers=NET))


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        (lambda x: x.expand(3, -1, -1), InputError, "inputs has 3 channels"),
        (lambda x: x[:, :2, :2], RuntimeError, "[Kk]ernel size"),
    ],
)
def test_a_model_that_takes_no_such_images_stops_at_once(tmp_path, wrong, error, words):
    calls = []

    def prepare(image):
        calls.append(0)
        return wrong(preprocess(image))

    with pytest.raises(error, match=words):
        find(net(), prepare=prepare, batch_size=1, state=tmp_path)
    assert len(calls) == mining.COMPUTE_BATCH
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), MemoryError(), "real"])
def test_out_of_memory_halves_the_batch(error):
    sizes = []

    def full(x, hit):
        sizes.append(len(x))
        if len(x) > 4:
            if error == "real":
                torch.empty(2**56, dtype=torch.uint8)
            raise error
        return x

    source = Noise(20, SIDE)
    whole = find(moody(lambda x, hit: x, 0)[0], source, layers=NET)
    model, _ = moody(full, 0)
    before = state(model)
    equal(find(model, source, layers=NET), whole)
    assert_same(state(model), before)
    assert sizes == [16, 8, 4, 4, 8, 4, 4, 16, 8, 4]  # the last chunk holds 4


def test_no_memory_for_one_image_costs_that_image():
    def full(x, hit):
        if bool(hit.any()):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return x

    model, chosen = moody(full, 22)
    found = find(model, layers=NET)
    assert [index for index, _ in found.skipped] == chosen
    assert all(reason.startswith("out of memory even alone") for _, reason in found.skipped)
    same_lists(found, find(model, Noise(40, SIDE, bad=chosen), layers=NET))


def test_a_gpu_that_is_unusable_stops_the_run(tmp_path, monkeypatch):
    def lost(device, error):
        raise ModelError("cuda is unusable")

    model, _ = moody(lambda x, hit: x if not bool(hit.any()) else 1 / 0, 21)
    with monkeypatch.context() as patched:
        patched.setattr("attribkit.features._miner.check_device", lost)
        with pytest.raises(ModelError, match="unusable"):
            find(model, layers=NET, state=tmp_path)
    assert mined.Progress.load(tmp_path / "state-0.safetensors")[0].done.tolist() == [True, False, False]
    equal(find(model, layers=NET, state=tmp_path), find(model, layers=NET))


# --- the disk


def test_a_full_disk_is_a_clean_stop(tmp_path, model, monkeypatch):
    whole, calls = find(model), []
    write = mined.write_atomically

    def full(path, contents):
        calls.append(0)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, contents)

    with monkeypatch.context() as patched:
        patched.setattr(mining, "SAVE_SECONDS", 0.0)
        patched.setattr(mined, "write_atomically", full)
        with pytest.raises(StoreError, match=r"cannot be written: No space left on device; .*the same command goes on"):
            find(model, state=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["state-0.safetensors"]
    assert mined.Progress.load(tmp_path / "state-0.safetensors")[0].done.tolist() == [True, False, False]
    equal(find(model, state=tmp_path), whole)


def test_a_state_that_cannot_be_written_is_told_before_any_work(tmp_path, model, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(StoreError, match=r"cannot be written: Read-only file system$"):
        find(model, prepare=lambda image: pytest.fail("it began"), state=tmp_path)
    monkeypatch.undo()
    with pytest.raises(StoreError, match=r"cannot be written: No such file or directory$"):
        find(model, state=tmp_path / "nowhere")


# --- trying again


def test_what_was_left_out_is_tried_again(tmp_path, model):
    """As if nothing had been left out: also after an interruption, and where another process had noted it."""
    away = [3, 17, 39]
    source = Noise(40, SIDE, bad=away)
    assert [index for index, _ in find(model, source, state=tmp_path).skipped] == away
    os.rename(tmp_path / "state-0.safetensors", tmp_path / "state-1.safetensors")
    source.bad = []
    assert [index for index, _ in find(model, source, state=tmp_path).skipped] == away  # not by itself
    read = []

    def interrupted(image):
        read.append(0)
        if len(read) > 16:
            raise KeyboardInterrupt
        return preprocess(image)

    with pytest.raises(KeyboardInterrupt):
        find(model, source, interrupted, state=tmp_path, retry=True, batch_size=16)
    progress, _ = mined.Progress.load(tmp_path / "state-0.safetensors")
    assert (progress.done.tolist(), progress.skipped) == ([True, False, False], {})
    found = find(model, source, state=tmp_path)
    assert found.skipped == ()
    same_lists(found, find(model))


def test_an_image_that_has_gone_when_others_are_tried_again(tmp_path, model):
    source = Noise(40, SIDE, bad=[3])
    find(model, source, state=tmp_path)
    source.bad = [5]
    found = find(model, source, state=tmp_path, retry=True)
    assert [index for index, _ in found.skipped] == [5]
    same_lists(found, find(model))  # what it held is known


# --- processes


def test_a_worker_that_is_killed_by_chance_costs_nothing(tmp_path, model):
    once, parent = tmp_path / "once", os.getpid()

    def prepare(image):
        if os.getpid() != parent and not once.exists():
            once.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return preprocess(image)

    whole = find(model)
    equal(find(model, prepare=prepare, workers=2, batch_size=8), whole)
    assert once.exists()


def test_an_image_that_kills_its_worker_is_found(model):
    source, parent = Noise(20, SIDE), os.getpid()
    fatal = np.asarray(source.load(11))

    def prepare(image):
        if os.getpid() != parent and np.array_equal(np.asarray(image), fatal):
            os.kill(os.getpid(), signal.SIGSEGV)
        return preprocess(image)

    found = find(model, source, prepare, workers=1, batch_size=4)
    assert found.skipped == ((11, loading._KILLED),)
    same_lists(found, find(model, Noise(20, SIDE, bad=[11])))


def test_too_little_shared_memory_is_done_without(tmp_path, model, monkeypatch):
    def full(self):
        (tmp_path / "asked").touch()
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1_2>: No space left on device (28)")

    whole = find(model)
    monkeypatch.setattr(torch.Tensor, "share_memory_", full)  # in the workers too: they are forked
    equal(find(model, workers=1), whole)
    assert (tmp_path / "asked").exists()


def test_processes_are_those_of_runs(monkeypatch):
    """They wait for a slower one as long, and end with their launcher."""
    asked = []

    @contextmanager
    def group(backend, timeout):
        asked.append(timeout.days)
        yield
        asked.append("left")

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("attribkit.runs.ranks._end_with_parent", lambda: asked.append("parent"))
    monkeypatch.setattr("attribkit.runs.ranks.process_group", group)
    monkeypatch.setattr("attribkit.runs.ranks.joined", lambda: Ranks(1, 2, 2))
    with mining.processes() as rank:
        assert rank == 1
    assert asked == ["parent", 30, "left"]


# --- the pages


def pages(tmp_path, model, prepare=preprocess):
    loaded = LoadedModel("helper", model, prepare, lambda x: x / 255, None, (1, SIDE, SIDE), "here", "as it is")
    return galleries.gallery(loaded, tmp_path / "in", ["0"], tmp_path / "out", top=3)


@pytest.fixture
def five(tmp_path):
    (tmp_path / "in").mkdir()
    for i in range(5):
        Noise(5, SIDE).load(i).save(tmp_path / "in" / f"{i}.png")
    return tmp_path / "in"


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file()}


def test_an_image_that_vanishes_before_it_is_projected(tmp_path, model, five, monkeypatch):
    pages(tmp_path, model)
    sound = contents(tmp_path / "out")
    for path in (tmp_path / "out").glob("*.safetensors"):
        path.unlink()
    original = galleries.mine

    def mine_then_lose(*args, **kwargs):
        found = original(*args, **kwargs)
        best = next(found.layers["0"].hits(0)).image
        (five / f"{best}.png").rename(five / "away")
        return found

    with monkeypatch.context() as patched:
        patched.setattr(galleries, "mine", mine_then_lose)
        found = pages(tmp_path, model)
    ((index, reason),) = found.unshown
    assert "no such file" in reason
    assert found.skipped == ()
    assert f"{index}.png" in (tmp_path / "out" / "index.html").read_text()
    assert "not projected" in (tmp_path / "out" / "index.html").read_text()
    (five / "away").rename(five / f"{index}.png")
    assert pages(tmp_path, model).unshown == ()  # back again, it is shown
    assert contents(tmp_path / "out") == sound


def test_projection_without_enough_memory_goes_on_in_halves(tmp_path, model, five, monkeypatch):
    from attribkit.features import crops

    pages(tmp_path, model)
    sound = contents(tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / "sound")
    original, sizes = crops._project_at_once, []

    def full(loaded, batch, *rest):
        sizes.append(len(batch))
        if len(batch) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return original(loaded, batch, *rest)

    monkeypatch.setattr(crops, "_project_at_once", full)
    pages(tmp_path, model)
    assert sizes == [9, 5, 3, 2, 4, 2, 2]
    assert contents(tmp_path / "out") == sound


def test_a_full_disk_while_the_pages_are_written(tmp_path, model, five, monkeypatch):
    pages(tmp_path, model)
    sound = contents(tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / "sound")

    def full(path, contents):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(galleries, "write_atomically", full)
        with pytest.raises(StoreError, match=r"'.*out' cannot be written: No space left on device"):
            pages(tmp_path, model)
    pages(tmp_path, model)
    assert contents(tmp_path / "out") == sound


def test_an_output_that_is_a_file(tmp_path, model, five):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(InputError, match="cannot be made"):
        pages(tmp_path, model)
    assert (tmp_path / "out").read_text() == "mine"


def test_a_run_that_fails_at_once_leaves_no_folder(tmp_path, model, five):
    loaded = LoadedModel("helper", model, preprocess, lambda x: x / 255, None, (1, SIDE, SIDE), "here", "as it is")
    with pytest.raises(UnknownNameError, match="nowhere"):
        galleries.gallery(loaded, five, ["nowhere"], tmp_path / "new" / "out")
    assert not (tmp_path / "new").exists()
