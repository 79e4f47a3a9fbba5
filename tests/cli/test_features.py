"""``attribkit features``."""

import json
from pathlib import Path

import pytest
from cli_helpers import error_of
from safetensors import safe_open

import attribkit as ak

FIVE = ("--model", "tinynets:five")


@pytest.fixture
def folder(picture, tmp_path, one_thread):
    """A folder of six images, one of them damaged."""
    for seed in range(5):
        picture(f"data/{seed}.png", seed=seed, size=(24, 24))
    (tmp_path / "data" / "bad.png").write_bytes(b"\x89PNG nothing")
    return tmp_path / "data"


def test_everything_that_is_promised(run, folder):
    result = run("features", *FIVE, "--data", folder, "--layer", "1", "--layer", "2", "--top", "4", "--out", "out")
    assert result.exit_code == 1, result.output  # one image is damaged
    assert "attribkit: error: bad.png: is not an image" in result.stderr
    assert result.stdout == f"8 feature maps over 5 images, 1 left out: {Path('out') / 'index.html'}\n"
    names = {path.name for path in Path("out").iterdir()}
    assert names >= {"index.html", "1.html", "2.html", "1.png", "2.png", "features.json", "state"}
    found = json.loads(Path("out/features.json").read_text())
    assert [entry["image"] for entry in found["skipped"]] == ["bad.png"]
    assert set(found["layers"]) == {"1", "2"}
    layer = found["layers"]["1"]
    assert layer["field"]["size"] == [3, 3]
    hits = layer["features"]["2"]
    assert [hit["rank"] for hit in hits] == [1, 2, 3, 4]
    values = [hit["value"] for hit in hits]
    assert values == sorted(values, reverse=True)
    row, column = hits[0]["position"]
    assert hits[0]["box"] == [max(row - 1, 0), max(column - 1, 0), min(row + 2, 24), min(column + 2, 24)]
    loaded = ak.load_model("tinynets:five")
    from attribkit.images import read_image

    x = loaded.preprocess(read_image(folder / hits[0]["image"]))[None]
    score = ak.attribute(loaded.model, x, target=ak.Unit("1", 2)).scores
    assert float(score) == pytest.approx(values[0], rel=1e-5)
    with safe_open(Path("out") / layer["files"]["crops"][0], framework="pt") as file:
        assert file.get_tensor("projections").shape == (4, 4, 3, 3, 3)
        assert file.get_tensor("channels").tolist() == [0, 1, 2, 3]
    page = Path("out/1.html").read_text()
    assert hits[0]["image"] in page
    assert "http" not in page.replace("http-equiv", "")
    assert "bad.png" in Path("out/index.html").read_text()


def test_again_it_goes_on_and_another_run_is_refused(run, folder):
    arguments = ("features", *FIVE, "--data", folder, "--layer", "1", "--out", "out")
    assert run(*arguments).exit_code == 1  # the damaged image
    before = {p.name: p.read_bytes() for p in Path("out").iterdir() if p.is_file()}
    assert run(*arguments).exit_code == 1
    assert before == {p.name: p.read_bytes() for p in Path("out").iterdir() if p.is_file()}
    assert "top was 9 and is 3" in error_of(run(*arguments, "--top", "3"))
    assert "channels was 'all' and is [1]" in error_of(run(*arguments, "--channels", "1"))
    assert run(*arguments, "--method", "gradient").exit_code == 1  # what was mined serves every method
    assert json.loads(Path("out/features.json").read_text())["method"] == "gradient"


def test_images_that_were_left_out_are_tried_again(run, folder, picture):
    arguments = ("features", *FIVE, "--data", folder, "--layer", "1", "--out", "out")
    assert run(*arguments).exit_code == 1  # the damaged image
    picture("data/bad.png", seed=7, size=(24, 24))
    again = run(*arguments)
    assert (again.exit_code, "1 left out" in again.stdout) == (1, True)
    result = run(*arguments, "--retry")
    assert (result.exit_code, result.stderr) == (0, "")
    assert run(*arguments[:-1], "anew").exit_code == 0
    for name in ("1-000.safetensors", "1-000.png", "1.png"):  # the crops of the longer lists too
        assert Path("out", name).read_bytes() == Path("anew", name).read_bytes()


def test_channels(run, folder):
    assert (
        run("features", *FIVE, "--data", folder, "--layer", "1", "--channels", "3,0-1,1", "--out", "o").exit_code == 1
    )
    assert list(json.loads(Path("o/features.json").read_text())["layers"]["1"]["features"]) == ["3", "0", "1"]
    for wrong in ("x", "3-1", "", "1,,2", "-1"):
        result = run("features", *FIVE, "--data", folder, "--layer", "1", "--channels", wrong)
        assert result.exit_code == 2
        assert "neither all nor a list" in result.stderr


def test_hostile_names_are_escaped(run, picture, tmp_path, one_thread):
    hostile = 'a"><img src=x onerror=alert(1)>&.png'
    for seed, each in enumerate((hostile, "b.png")):
        try:
            picture(f"data/{each}", seed=seed)
        except OSError:
            pytest.skip("this file system does not take such names")
    picture("data2/<b>class/x.png")
    for data in ("data", "data2"):
        result = run("features", *FIVE, "--data", tmp_path / data, "--layer", "1", "--out", data + "-out")
        assert result.exit_code == 0, result.output
        for page in Path(data + "-out").glob("*.html"):
            text = page.read_text()
            assert "<img src=x" not in text
            assert "<b>class" not in text
            assert text.count("<script>") == 1
    assert "onerror=alert(1)&gt;&amp;.png" in Path("data-out/1.html").read_text()
    assert "&lt;b&gt;class" in Path("data2-out/1.html").read_text()


def test_wrong_input_is_one_line(run, folder):
    base = ("features", *FIVE, "--data", folder)
    assert "layer 'conv9' is not called" in error_of(run(*base, "--layer", "conv9"))
    assert "channel 9 is out of range" in error_of(run(*base, "--layer", "1", "--channels", "9"))
    assert "there is no such folder" in error_of(run("features", *FIVE, "--data", "nowhere", "--layer", "1"))
    assert "deconvnet" in error_of(run(*base, "--layer", "1", "--method", "deconvnt"))
    Path("file").write_text("")
    assert "'file' cannot be made" in error_of(run(*base, "--layer", "1", "--out", "file"))
    assert run(*base).exit_code == 2
    assert run("features", *FIVE, "--layer", "1").exit_code == 2
    assert run(*base, "--layer", "1", "--top", "0").exit_code == 2


def test_interrupted_it_exits_with_130(run, folder):
    result = run("features", "--model", "tinynets:Interrupted", "--data", folder, "--layer", "net.1", "--out", "out2")
    assert result.exit_code == 130
    assert "interrupted" in result.stderr
