"""`attribkit explain` of many images, and `attribkit report` of what it kept."""

import html
import json
import os
from pathlib import Path

import pytest
import torch
from cli_helpers import error_of

import attribkit as ak

FIVE = ("--model", "tinynets:five")
ARGS = (*FIVE, "--out", "out", "--method", "gradient", "--batch-size", "4")


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    return


@pytest.fixture
def pictures(picture):
    """Write some images of noise into the folder ``in``."""

    def pictures(count):
        for number in range(count):
            picture(f"in/{number:02d}.png", seed=number)

    return pictures


def left(folder, suffix):
    return sorted(path.name for path in Path(folder).iterdir() if path.suffix == suffix)


def test_few_images_get_no_store_unless_it_is_asked_for(run, pictures):
    pictures(4)
    assert run("explain", "in", *ARGS).exit_code == 0
    assert not Path("out/index.sqlite").exists()
    assert run("explain", "in", *ARGS, "--store").exit_code == 0
    assert len(ak.open_store("out")) == 4
    assert run("explain", "in", *ARGS).exit_code == 0  # a store stays one
    assert len(left("out", ".png")) == 4


def test_some_images_get_both(run, pictures):
    pictures(6)
    Path("in/03.png").write_bytes(b"no image")
    result = run("explain", "in", *ARGS, "--method", "gradient,occlusion")
    assert error_of(result) == (
        "in/03.png: is not an image of a kind that can be read (JPEG, PNG, WEBP, GIF, BMP, TIFF, PPM, JPEG2000, AVIF)"
    )
    assert result.stdout == "5 images explained, 1 with errors: out/report.html\n"
    store = ak.open_store("out")
    assert len(store) == 12
    summary = {entry["path"]: entry for entry in json.loads(Path("out/summary.json").read_text())["images"]}
    assert len(summary) == 6
    for record in store:
        entry = summary[record.image]
        if record.image == "in/03.png":
            assert "in/03.png: " + entry["error"] == error_of(result)
            continue
        saved = ak.Attribution.load(f"out/{Path(record.image).stem}.{record.method}.safetensors")
        assert torch.equal(saved.values[0], record.values)
        assert set(saved.extras) == set(record.extras)
        assert saved.method in saved.coverage.sentence
        numbers = entry["methods"][record.method]
        assert (numbers["target"], numbers["score"]) == (record.target, record.score)
        assert len(entry["top"]) == 5
        assert entry["top"][0]["index"] == record.target
    page = Path("out/report.html").read_text("utf-8")
    assert page.count("Occlusion") >= 5
    assert "Not explained" in page


def test_many_images_get_the_store_alone_and_a_page_on_demand(run, pictures):
    pictures(51)
    Path("in/50.png").write_bytes(b"")
    result = run("explain", "in", *ARGS, "--half")
    assert result.exit_code == 1
    assert result.stdout == "50 images explained, 1 with errors: out (attribkit report out draws them)\n"
    assert not left("out", ".png")
    assert len(ak.open_store("out")) == 51

    again = run("explain", "in", *ARGS, "--half")  # nothing is left to do: the exit code is the store's
    assert again.exit_code == 1
    assert again.stdout == result.stdout
    assert again.stderr == "attribkit: error: 1 image: the file is empty (0 bytes)\n"

    Path("in/00.png").unlink()
    drawn = run("report", "out", *FIVE, "--image", "in/0[0-3].png")
    assert error_of(drawn) == "in/00.png: no such file"
    assert drawn.stdout == "3 images drawn, 1 with errors: out/report.html\n"
    assert left("out", ".png") == ["01.gradient.png", "02.gradient.png", "03.gradient.png"]
    entries = json.loads(Path("out/summary.json").read_text())["images"]
    assert [entry["error"] for entry in entries] == ["no such file", None, None, None]
    assert not list(Path("out").glob("*.safetensors"))

    limited = run("report", "out", *FIVE, "--limit", "2", "--out", "some", "--image", "*1*.png", "--maps")
    assert "the first 2 of 14 images" in limited.stderr
    assert left("some", ".png") == ["01.gradient.png", "10.gradient.png"]
    assert left("some", ".safetensors") == ["01.gradient.safetensors", "10.gradient.safetensors"]


def test_report_says_which_of_its_images_had_failed(run, pictures):
    pictures(6)
    Path("in/04.png").write_bytes(b"")
    run("explain", "in", *ARGS)
    drawn = run("report", "out", *FIVE, "--out", "page")
    assert error_of(drawn) == "1 image failed when explained: the page has the reasons"
    assert drawn.stdout == "5 images drawn, 1 with errors: page/report.html\n"
    others = run("report", "out", *FIVE, "--image", "in/0[0-3].png")
    assert (others.exit_code, others.stderr) == (0, "")
    assert others.stdout == "4 images drawn: out/report.html\n"


@pytest.mark.filterwarnings("always::attribkit.errors.LoadingWarning")
def test_that_no_process_loads_images_any_more_is_said_in_one_line(run, pictures, monkeypatch):
    pictures(5)
    from attribkit.runs import loading

    def dies(*args):
        raise loading._WorkerDied
        yield

    monkeypatch.setattr(loading, "_by_workers", dies)
    monkeypatch.setattr(loading, "_one_by_one", lambda images, batch: images[batch])  # none of them is guilty
    result = run("explain", "in", *ARGS[:-1], "1", "--workers", "1")
    assert result.exit_code == 0, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("attribkit: warning: the processes that load images were killed 3 times, by no one image")
    assert len(ak.open_store("out")) == 5


def test_failures_are_not_said_without_end(run, pictures):
    pictures(30)
    for number in range(26):
        Path(f"in/{number:02d}.png").write_bytes(b"" if number % 2 else b"x")
    lines = run("explain", "in", *ARGS).stderr.splitlines()
    assert len(lines) == 22
    assert lines[0].startswith("attribkit: error: in/00.png: is not an image")
    assert lines[-2].startswith("attribkit: error: 13 images: is not an image")
    assert lines[-1] == "attribkit: error: 13 images: the file is empty (0 bytes)"


def test_lists_patterns_and_tar_files(run, pictures):
    import tarfile

    pictures(6)
    Path("L.txt").write_text("in/00.png\nin/01.png\n")
    with tarfile.open("x.tar", "w") as tar:
        tar.add("in/02.png", "a/key.png")
    assert run("explain", "L.txt", "in/0[01].png", *ARGS).exit_code == 0
    assert sorted(left("out", ".png")) == ["00.gradient.png", "01.gradient.png"]
    assert run("explain", "x.tar", *ARGS[:2], "--out", "tar", *ARGS[4:]).exit_code == 0
    assert [record.image for record in ak.open_store("tar")] == ["x.tar/a/key.png"]
    assert left("tar", ".png") == ["key.gradient.png"]


def test_another_run_is_refused_and_nothing_changes(run, pictures):
    pictures(5)
    assert run("explain", "in", *ARGS).exit_code == 0
    before = {path.name: path.read_bytes() for path in Path("out/shards").iterdir()}
    for change, words in (
        (["--target", "2"], "target was 'auto' and is 2"),
        (["--method", "occlusion"], "methods.occlusion was absent"),
        (["--shrink", "2"], "maps was 'float32, shrunk by 1' and is 'float32, shrunk by 2'"),
        (["--batch-size", "5"], "batch size was 4 and is 5"),
        (["--model", "tinynets:smooth"], "model was 'tinynets:five' and is 'tinynets:smooth'"),
    ):
        assert words in error_of(run("explain", "in", *ARGS, *change))
    assert {path.name: path.read_bytes() for path in Path("out/shards").iterdir()} == before


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--target", "9"], "class 9 is out of range"),
        (["--layer", "11", "--channel", "0"], "11"),
        (["--labels", "names.txt"], "names.txt"),
        (["--option", "gradient.x=1"], "has no option 'x'"),
    ],
)
def test_what_is_wrong_for_every_image_leaves_nothing(run, pictures, args, words):
    pictures(6)
    Path("names.txt").write_text("one\ntwo\n")
    result = run("explain", "in", *FIVE, "--out", "new/out", "--method", "gradient", *args)
    assert words in error_of(result)
    assert sorted(os.listdir(".")) == ["in", "names.txt"]


def test_report_runs_no_code_that_a_store_names(run, pictures):
    pictures(5)
    assert run("explain", "in", *ARGS).exit_code == 0
    message = error_of(run("report", "out"))
    assert message == "the store is of the model 'tinynets:five': loading it may run code; name it with --model"
    assert "other weights" in error_of(run("report", "out", "--model", "tinynets:smooth"))
    assert "no image fits 'x*'" in error_of(run("report", "out", *FIVE, "--image", "x*"))
    assert "there is no such folder" in error_of(run("report", "nowhere"))
    assert "there is no such image" in error_of(run("report", "out", *FIVE, "--failed"))


def test_an_interrupt_and_the_same_command_again(run, pictures, monkeypatch):
    pictures(7)
    from attribkit.runs import loop

    original, calls = loop.write_shard, []

    def interrupted(*args):
        calls.append(0)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(loop, "write_shard", interrupted)
    result = run("explain", "in", *ARGS)
    assert (result.exit_code, result.stderr) == (130, "attribkit: interrupted\n")
    assert len(ak.open_store("out")) == 4
    assert run("explain", "in", *ARGS).exit_code == 0
    assert len(ak.open_store("out")) == 7
    assert len(calls) == 3


def test_a_model_that_refuses_one_image_alone(run, picture):
    """In a batch the model took every image; asked again for the page, it refuses one."""
    for number in range(5):
        picture(f"in/{number}.png", seed=number, brightest=2 if number == 3 else 256)
    arguments = ("in", "--model", "tinynets:DarkIsFatal", *ARGS[2:], "--batch-size", "5")
    result = run("explain", *arguments)
    assert error_of(result) == "in/3.png: the model's forward raised ValueError: too dark"
    assert result.stdout == "5 images explained, 1 with errors: out/report.html\n"
    entries = json.loads(Path("out/summary.json").read_text())["images"]
    reason = "the model's forward raised ValueError: too dark"
    assert [entry["error"] for entry in entries] == [None, None, None, reason, None]
    assert [len(entry["top"]) for entry in entries] == [5, 5, 5, 0, 5]
    assert len(left("out", ".png")) == 5  # its map is kept, and is shown
    page = Path("out/report.html").read_text("utf-8")
    assert page.count('<article class="image"') == 5
    assert reason in html.unescape(page)
    again = run("explain", *arguments)  # nothing is left to do, and it is said again
    assert (again.exit_code, again.stdout) == (1, result.stdout)


def test_an_image_that_fails_on_the_page_alone_leaves_the_others(run, pictures, monkeypatch):
    pictures(3)
    from attribkit.cli._session import Session

    def preprocess(self, image):
        calls.append(image)
        if len(calls) == 2:
            raise ZeroDivisionError("oops")
        return original(self, image)

    calls, original = [], Session.inputs
    monkeypatch.setattr(Session, "inputs", preprocess)
    result = run("explain", "in", *ARGS, "--store")
    assert error_of(result) == "in/01.png: ZeroDivisionError: oops (--debug shows where)"
    assert left("out", ".png") == ["00.gradient.png", "02.gradient.png"]
    assert "Not explained" in Path("out/report.html").read_text("utf-8")
