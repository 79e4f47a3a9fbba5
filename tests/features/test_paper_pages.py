"""The pages of docs/paper and the script that makes their pictures and numbers."""

import argparse
import importlib.util
import re
import sys
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import save_file

from attribkit.models import packaged, zfnet

PAPER = Path(__file__).parents[2] / "docs" / "paper"
PAGES = {page.name: page.read_text("utf-8") for page in sorted(PAPER.glob("*.md"))}


@pytest.fixture
def script(tmp_path, monkeypatch):
    """Load the script, writing into an empty folder."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec = importlib.util.spec_from_file_location("make_figures", PAPER / "make_figures.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    shared = sys.modules["paper_shared"]
    monkeypatch.setattr(shared, "HERE", tmp_path)
    monkeypatch.setattr(shared, "options", argparse.Namespace(weights=None, run=None))
    shared.fashion.cache_clear()
    yield module
    shared.fashion.cache_clear()


def test_the_names_in_the_pages_are_the_scripts(script):
    named = {
        name
        for text in PAGES.values()
        for line in re.findall(r"make_figures\.py ([a-z -]+)`", text)
        for name in line.split()
    }
    assert named <= set(script.FIGURES)
    assert {"evolution", "invariance", "occlusion", "correspondence", "diagnosis", "deconvnet-layer"} <= named


def test_every_marker_is_filled_by_the_script_and_is_closed(script):
    code = "".join(file.read_text("utf-8") for file in PAPER.glob("*.py"))
    written = re.findall(r'numbers\(\s*"([a-z-]+)"', code)
    marked = [name for text in PAGES.values() for name in re.findall(r"<!-- numbers: ([a-z-]+) -->\n", text)]
    assert sorted(written) == sorted(marked)
    for text in PAGES.values():
        assert text.count("<!-- numbers:") == text.count("<!-- end -->")


def test_numbers_go_between_their_markers(script, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- numbers: x -->\nold\n<!-- end -->\nb\n<!-- numbers: y -->\n<!-- end -->\nc\n")
    script.numbers("x", script.markdown(["n", "v"], [["a\\b", 0.123456], [1, 2]]))
    script.numbers("y", "1\n")
    assert page.read_text() == (
        "a\n<!-- numbers: x -->\n| n | v |\n| --- | --- |\n| a\\b | 0.123 |\n| 1 | 2 |\n<!-- end -->\n"
        "b\n<!-- numbers: y -->\n1\n<!-- end -->\nc\n"
    )
    with pytest.raises(ValueError, match="no page has the markers"):
        script.numbers("z", "1")


def test_fig_1_is_drawn_from_the_real_computation(script, tmp_path, one_thread):
    assert script.main(["deconvnet-layer"]) == 0
    with Image.open(tmp_path / "images" / "deconvnet-layer.png") as image:
        assert min(image.size) > 400


def test_what_is_missing_is_said(script, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(packaged.SHIPPED, "zfnet-fashion", None)
    assert script.main(["evolution", "diagnosis", "--run", str(tmp_path)]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("evolution: not made: the snapshots: ")
    assert lines[1].startswith("diagnosis: not made: zfnet-fashion: its weights do not come")
    assert not (tmp_path / "images").exists()
    with pytest.raises(SystemExit):
        script.main(["nothing"])


def test_a_figure_and_its_numbers_from_given_weights(script, tmp_path, monkeypatch, one_thread):
    import torch

    options = {"num_classes": 10, "in_chans": 1, "img_size": 56, "width": 0.05}
    torch.manual_seed(0)
    save_file(zfnet(**options).state_dict(), tmp_path / "w.safetensors")
    config = {"mean": (0.3,), "std": (0.3,), "crop_pct": 1.0}
    monkeypatch.setitem(packaged.SHIPPED, "zfnet-fashion", packaged.Shipped("none", options, config))
    (tmp_path / "diagnosis.md").write_text(PAGES["diagnosis.md"])
    assert script.main(["diagnosis", "--weights", str(tmp_path / "w.safetensors")]) == 0
    assert "of 5 filters" in (tmp_path / "diagnosis.md").read_text()
    assert (tmp_path / "images" / "diagnosis.png").exists()
