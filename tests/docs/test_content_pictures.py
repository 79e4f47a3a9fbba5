"""The engine's pictures can be drawn from the engine as it is, and the numbers beside them are what that gives."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
OURS = re.compile(r"images/((?:engine|methods)-[\w-]+\.png)")
MOST = 300_000


@pytest.fixture
def engine(monkeypatch, tmp_path, one_thread):
    """Return the script, its pictures going elsewhere, and the numbers it hands out, by name."""
    monkeypatch.syspath_prepend(str(DOCS))
    tools, script = importlib.import_module("picture_tools"), importlib.import_module("make_engine_images")
    found = {}
    monkeypatch.setattr(tools, "IMAGES", tmp_path)
    monkeypatch.setattr(script, "numbers", lambda name, text: found.update({name: text}))
    return script, found


@pytest.mark.parametrize("name", ["walk", "rectifiers", "rectangles", "occlusion", "growth", "lean"])
def test_the_engines_pictures(engine, name, tmp_path):
    """The scripts themselves check that nothing lies outside a rectangle; they raise where something does."""
    script, numbers = engine
    assert name in script.PICTURES
    script.PICTURES[name]()
    assert (tmp_path / f"engine-{name}.png").stat().st_size > 1000
    page = (DOCS / "engine.md").read_text("utf-8")
    for marker, text in numbers.items():
        assert f"<!-- numbers: {marker} -->\n{text}\n<!-- end -->" in page, f"make {name} again"


def test_every_picture_of_the_script_is_tried(engine):
    script, _ = engine
    tried = next(mark for mark in test_the_engines_pictures.pytestmark if mark.name == "parametrize").args[1]
    assert list(script.PICTURES) == tried


def test_pictures_are_used_and_small():
    used = {name for page in DOCS.glob("*.md") for name in OURS.findall(page.read_text("utf-8"))}
    there = {
        path.name: path.stat().st_size
        for pattern in ("engine-*", "methods-*")
        for path in DOCS.glob(f"images/{pattern}")
    }
    assert used == set(there)
    assert {name: size for name, size in there.items() if size > MOST} == {}
