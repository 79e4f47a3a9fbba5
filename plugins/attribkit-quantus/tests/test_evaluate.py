"""``attribkit evaluate``: the command, its files, its errors."""

from __future__ import annotations

import csv
import html
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from attribkit_quantus import Settings, evaluate
from attribkit_quantus.page import page
from attribkit_quantus.results import CONTROL
from attribkit_quantus.settings import MEASURES, PARTS
from click.testing import CliRunner
from PIL import Image

import attribkit as ak
from attribkit.cli import main
from attribkit.datasets import open_images
from attribkit.errors import InputError, UnknownNameError

SMALL = ("--images", "8", "--subset", "4", "--steps", "4", "--repeats", "2", "--batch-size", "4")
SETTINGS = Settings(images=8, subset=4, steps=4, repeats=2, batch_size=4)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run(*arguments):
    return CliRunner().invoke(main, ["evaluate", *map(str, arguments)])


def error_of(result, code=1):
    assert result.exit_code == code, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("attribkit: error: ")
    return line.removeprefix("attribkit: error: ")


def rows_of(path):
    with open(path, encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def words_of(text):
    return html.unescape(re.sub(r"<[^>]+>", " ", re.sub(r"<style>.*?</style>", "", text, flags=re.S)))


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Run the command once, on the shipped network and images."""
    out = tmp_path_factory.mktemp("evaluation") / "made"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model = ("--model", "zfnet-fashion", "--data", "fashion-sample")
    methods = ("--method", "gradient,guided_backprop", "--method", "deconvnet")
    result = run(*model, *methods, *SMALL, "--out", out)
    torch.set_num_threads(threads)
    assert result.exit_code == 0, result.output
    return out, result


def test_it_writes_four_files_and_nothing_else(done):
    out, result = done
    names = {"report.html", "evaluation.csv", "images.csv", "randomisation.csv"}
    assert {path.name for path in out.iterdir()} == names
    assert f"written: {out / 'report.html'}" in result.stdout
    assert result.stderr == ""


def test_a_row_a_method_and_measure(done):
    out, _ = done
    rows = rows_of(out / "evaluation.csv")
    assert list(rows[0]) == ["method", "metric", "mean", "lo", "hi", "n", "better"]
    table = {(row["method"], row["metric"]): row for row in rows}
    assert len(table) == len(rows)
    names = [measure.name for measure in MEASURES]
    for method in ("gradient", "guided_backprop", "deconvnet"):
        assert [metric for name, metric in table if name == method] == names
    known_of_noise = {"deletion", "insertion", "pixel_flipping", "grid_pointing_game", "complexity", "sparseness"}
    assert {metric for name, metric in table if name == CONTROL} == known_of_noise
    for (_, metric), row in table.items():
        assert float(row["lo"]) <= float(row["mean"]) <= float(row["hi"])
        assert int(row["n"]) == (4 if metric.startswith("randomisation") or metric == "sensitivity" else 8)


def test_the_means_are_those_of_the_images(done):
    out, _ = done
    numbers = {}
    for row in rows_of(out / "images.csv"):
        numbers.setdefault((row["method"], row["metric"]), []).append(float(row["value"]))
        assert row["image"].startswith("test-")
    for row in rows_of(out / "evaluation.csv"):
        assert float(row["mean"]) == pytest.approx(np.mean(numbers.pop((row["method"], row["metric"]))))
    assert not numbers


def test_upper_layers_matter_to_the_gradient_and_hardly_to_guided_backprop(done):
    out, result = done
    table = {(row["method"], row["metric"]): float(row["mean"]) for row in rows_of(out / "evaluation.csv")}
    assert table["guided_backprop", "randomisation"] > 0.9
    assert table["deconvnet", "randomisation"] > 0.5
    assert abs(table["gradient", "randomisation"]) < 0.3
    shown = words_of((out / "report.html").read_text("utf-8"))
    for text in (shown, result.stdout):
        assert "guided_backprop barely reacts: " in text
        assert "to the upper layers below, deconvnet barely reacts" in " ".join(text.split())
        assert "gradient reacts: " in text
        assert "So guided_backprop and deconvnet say little" in text
    depths = [row for row in rows_of(out / "randomisation.csv") if row["reading"] == "signed"]
    assert [row["down_to"] for row in depths[:8]] == ["fc8", "fc7", "fc6", "conv5", "conv4", "conv3", "conv2", "conv1"]
    here = [row for row in depths if row["down_to"] == "fc6"]
    assert [float(row["mean"]) for row in here] == [
        table[name, "randomisation"] for name in ("gradient", "guided_backprop", "deconvnet")
    ]


def test_the_page_stands_alone(done):
    text = (done[0] / "report.html").read_text("utf-8")
    assert "default-src 'none'" in text
    assert re.findall(r"""(?:src|href)=["'](?!data:image/png;base64,|#)""", text) == []
    assert "<script" not in text
    assert "attribkit evaluate --model zfnet-fashion" in words_of(text)


def test_the_same_seed_gives_the_same_table(done):
    source = open_images("fashion-sample")
    found = evaluate(ak.load_model("zfnet-fashion"), source, ["guided_backprop"], SETTINGS)
    ours = {row["metric"]: row for row in rows_of(done[0] / "evaluation.csv") if row["method"] == "guided_backprop"}
    for measure in found.measures:
        if measure.name != "seconds":
            assert found.interval("guided_backprop", measure.name).mean == float(ours[measure.name]["mean"])


def test_only_what_is_asked_for(tmp_path):
    given = ("--model", "zfnet-fashion", "--data", "fashion-sample", "--method", "gradient", "--measure", "complexity")
    assert run(*given, *SMALL, "--out", tmp_path).exit_code == 0
    assert {row["metric"] for row in rows_of(tmp_path / "evaluation.csv")} == {"complexity", "sparseness"}
    assert "randomised" not in (tmp_path / "report.html").read_text("utf-8")


def test_the_model_is_left_as_it_was():
    loaded = ak.load_model("zfnet-fashion")
    before = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    state = torch.random.get_rng_state()
    settings = Settings(images=4, subset=2, steps=2, repeats=1, depths=2, batch_size=4)
    evaluate(loaded, open_images("fashion-sample"), ["deconvnet"], settings)
    assert all(torch.equal(value, before[name]) for name, value in loaded.model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not any(module._forward_hooks or module.training for module in loaded.model.modules())


def test_a_method_that_fails_is_said_and_the_others_go_on(tmp_path, monkeypatch):
    kind = ak.methods()["gradient"].load()

    def broken(self, *args, **kwargs):
        raise ValueError("no luck\ntoday")

    monkeypatch.setattr(kind, "attribute", broken)
    given = ("--model", "zfnet-fashion", "--data", "fashion-sample", "--measure", "complexity,runtime")
    result = run(*given, "--method", "gradient,deconvnet", *SMALL, "--out", tmp_path / "out")
    assert error_of(result) == "gradient: no luck today"
    assert {row["method"] for row in rows_of(tmp_path / "out" / "evaluation.csv")} == {"deconvnet", CONTROL}
    assert "no luck today" in (tmp_path / "out" / "report.html").read_text("utf-8")
    result = run(*given, "--method", "gradient", *SMALL, "--out", tmp_path / "none")
    assert error_of(result) == "gradient: no luck today"
    assert not (tmp_path / "none").exists()


def test_interrupted_it_leaves_nothing(tmp_path, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("attribkit_quantus.measures.sparseness", stop)
    given = ("--model", "zfnet-fashion", "--data", "fashion-sample", "--measure", "complexity", "--method", "gradient")
    result = run(*given, *SMALL, "--out", tmp_path / "a" / "b")
    assert (result.exit_code, result.stderr) == (130, "attribkit: interrupted\n")
    assert list(tmp_path.iterdir()) == []


BASE = {"--model": "zfnet-fashion", "--data": "fashion-sample", "--method": "gradient"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"--method": "deconvent"}, "deconvnet"),
        ({"--model": "zfnet-fashon"}, "zfnet-fashion"),
        ({"--data": "nowhere"}, "no such folder"),
        ({"--split": "train"}, "no part 'train'"),
        ({"--option": "occlusion.stride=2"}, "not used"),
        ({"--option": "gradient.strid=2"}, "no option 'strid'"),
        ({"--device": "gpu9"}, "device 'gpu9' is not known"),
        ({"--model": "evaluated_nets:wide"}, "holds no class scores"),
        ({"--weights": "nothing.safetensors"}, "nothing.safetensors"),
    ],
)
def test_wrong_input_is_one_line(change, says, tmp_path, monkeypatch, request):
    monkeypatch.syspath_prepend(request.path.parent)
    given = {**BASE, **change, "--out": tmp_path / "out"}
    message = error_of(run(*(word for pair in given.items() for word in pair)))
    assert says in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"--method": "gradient,"}, "empty"),
        ({"--measure": "beauty"}, "'beauty' is not one of"),
        ({"--images": "0"}, "--images"),
        ({"--confidence": "1"}, "--confidence"),
        ({"--option": "stride"}, "METHOD.OPTION=VALUE"),
        ({"--reading": "loud"}, "--reading"),
        ({"--model": " "}, "--model is empty"),
    ],
)
def test_wrong_usage(change, says):
    result = run(*(word for pair in {**BASE, **change}.items() for word in pair))
    assert result.exit_code == 2
    assert says in result.stderr


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("mine")
    message = error_of(run("--model", "zfnet-fashion", "--data", "fashion-sample", "--out", tmp_path / "file" / "out"))
    assert "cannot be written" in message
    (tmp_path / "taken" / "images.csv").mkdir(parents=True)
    given = ("--model", "zfnet-fashion", "--data", "fashion-sample", "--method", "gradient", "--measure", "complexity")
    message = error_of(run(*given, *SMALL, "--out", tmp_path / "taken"))
    assert "images.csv is a folder" in message
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["images.csv"]


def folder_of(path, count):
    """Fill a folder with images of noise, and a file that is none."""
    path.mkdir()
    rng = np.random.default_rng(0)
    for index in range(count):
        Image.fromarray(rng.integers(0, 255, size=(20, 24, 3), dtype=np.uint8)).save(path / f"<b>{index}.png")
    (path / "broken.png").write_text("no image")
    return path


def test_few_images_without_classes_and_one_that_cannot_be_read(tmp_path):
    data = folder_of(tmp_path / "photos", 3)
    given = ("--model", "zfnet-fashion", "--data", data, "--method", "deconvnet", "--measure", "complexity")
    result = run(*given, "--measure", "grid_pointing_game", *SMALL, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "No grid pointing game" in result.stdout
    assert "broken.png" in result.stderr
    rows = rows_of(tmp_path / "out" / "evaluation.csv")
    assert {(row["metric"], row["n"]) for row in rows} == {("complexity", "3"), ("sparseness", "3")}


def test_a_folder_of_no_images_at_all(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "broken.png").write_text("no image")
    result = run("--model", "zfnet-fashion", "--data", tmp_path / "photos", "--out", tmp_path / "out")
    assert "no image can be read" in error_of(result)


def test_what_is_filled_into_the_page_is_escaped():
    found = evaluate(ak.load_model("zfnet-fashion"), open_images("fashion-sample"), ["gradient"],
                     Settings(images=2, parts=("complexity",)))  # fmt: skip
    found.model, found.data = "<script>m", "<script>d"
    found.failures["<script>f"] = "<script>r"
    found.notes.append("<script>n")
    found.facts["<script>k"] = "<script>v"
    text = page(found, "<script>c")
    assert "<script>" not in text
    assert text.count("&lt;script&gt;") >= 8


@pytest.mark.parametrize(
    ("settings", "error", "says"),
    [
        ({"images": 0}, InputError, "images must be at least 1, got 0"),
        ({"images": 2.5}, InputError, "images must be an int"),
        ({"grid": 1}, InputError, "grid must be at least 2"),
        ({"confidence": 1.0}, InputError, "confidence must lie between 0 and 1"),
        ({"radius": -1}, InputError, "radius must lie above 0"),
        ({"reading": "loud"}, InputError, "reading must be"),
        ({"parts": ("runtim",)}, UnknownNameError, "runtime"),
    ],
)
def test_settings_are_checked(settings, error, says):
    with pytest.raises(error, match=says):
        Settings(**settings)


def test_the_command_knows_the_parts():
    from attribkit_quantus import command

    assert command.PARTS == PARTS
    defaults = {p.name: p.default for p in command.evaluate.params}
    shared = {name: value for name, value in vars(Settings()).items() if name in defaults and name != "parts"}
    assert len(shared) >= 12
    assert {name: defaults[name] for name in shared} == shared


def test_the_plugin_is_there_and_light():
    code = """
        import sys
        from click.testing import CliRunner
        from attribkit.cli import main
        result = CliRunner().invoke(main, ["evaluate", "--help"])
        assert result.exit_code == 0, result.output
        assert "deletion" in result.output
        heavy = {"torch", "matplotlib", "quantus", "scipy", "timm"} & set(sys.modules)
        assert not heavy, heavy
        import attribkit_quantus
        assert attribkit_quantus.explain_func.__name__ == "explain_func"
    """
    import textwrap

    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


def test_it_is_listed_with_its_command():
    result = CliRunner().invoke(main, ["plugins"])
    assert result.exit_code == 0
    assert "attribkit-quantus" in result.output
