"""Every Python block of the documentation runs: a page's blocks in their order, in one namespace, as a reader would."""

from __future__ import annotations

import ast
import sys
import types

import page_blocks
import pytest
import timm
import torch
import torchvision
from page_blocks import Block, blocks_of, pages

# Blocks that cannot run, by page: no more than these, each with its reason in the page.
MAY_NOT_RUN = {}
WRITTEN = {"", "console", "diff", "html", "ini", "json", "pytb", "python", "sh", "text", "toml", "yaml"}
GENERATED = {"conformance-of-others.md"}  # counter-examples, as the kit prints them; tests/testing runs such


def python_blocks(page) -> list[Block]:
    return [block for block in blocks_of(page) if block.language in ("python", "setup")]


RUN = [page for page in pages() if page.name not in GENERATED and any(b.language == "python" for b in python_blocks(page))]


@pytest.fixture
def random_weights(monkeypatch):
    """Weights cannot be fetched here: ask for pretrained ones, and get drawn ones."""
    create, get = timm.create_model, torchvision.models.get_model
    monkeypatch.setattr(timm, "create_model", lambda *args, **kw: create(*args, **{**kw, "pretrained": False}))
    monkeypatch.setattr(torchvision.models, "get_model", lambda *args, **kw: get(*args, **{**kw, "weights": None}))


def run(blocks: list[Block], module: types.ModuleType) -> None:
    for block in blocks:
        if block.not_run is None:
            source = "\n" * (block.line - 1) + block.text
            exec(compile(source, str(block.page), "exec"), module.__dict__)  # its line numbers are the page's


@pytest.mark.parametrize("page", RUN, ids=[str(page.relative_to(page_blocks.ROOT)) for page in RUN])
def test_blocks_run(page, tmp_path, monkeypatch, random_weights, one_thread):
    module = types.ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)  # so that what a block defines has a home
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    torch.manual_seed(0)
    run(python_blocks(page), module)


@pytest.mark.parametrize("page", pages(), ids=[str(page.relative_to(page_blocks.ROOT)) for page in pages()])
def test_blocks_are_of_a_known_language(page):
    """A block called ``py`` or ``pycon`` would not be run."""
    odd = {block.place: block.language for block in blocks_of(page)}
    odd = {place: language for place, language in odd.items() if language not in {*WRITTEN, "setup"}}
    assert not odd, f"{odd}: call it one of {sorted(WRITTEN)}"


def test_few_blocks_are_not_run():
    left_out: dict[str, int] = {}
    for page in pages():
        for block in blocks_of(page):
            if block.not_run is not None:
                assert block.language == "python", f"{block.place}: 'not run' stands before a block that never is"
                assert len(block.not_run.split()) >= 3, f"{block.place}: say why it is not run"
                name = str(page.relative_to(page_blocks.ROOT))
                left_out[name] = left_out.get(name, 0) + 1
    assert left_out == MAY_NOT_RUN


def test_python_does_not_hide_in_blocks_without_a_language():
    for page in pages():
        for block in blocks_of(page):
            if block.language == "" and page.name not in GENERATED:
                try:
                    tree = ast.parse(block.text)
                except SyntaxError:
                    continue
                statements = [n for n in tree.body if not isinstance(n, ast.Expr) or isinstance(n.value, ast.Call)]
                assert not statements, f"{block.place} is Python: say so, and it is run"


def test_a_broken_block_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "<!-- setup:\nx = 1\n-->\n\n- in a list\n\n  ```python\n  y = x + 1\n  ```\n\n"
        "<!-- not run: it would take a year -->\n\n```python\nraise SystemExit\n```\n\n```python\nassert y == 3\n```\n"
    )
    blocks = blocks_of(page)
    assert [(b.language, b.text, b.line, b.not_run) for b in blocks] == [
        ("setup", "x = 1", 2, None),
        ("python", "y = x + 1", 8, None),
        ("python", "raise SystemExit", 14, "it would take a year"),
        ("python", "assert y == 3", 18, None),
    ]
    with pytest.raises(AssertionError) as caught:
        run(blocks, types.ModuleType("page"))
    assert (caught.traceback[-1].lineno + 1, str(caught.traceback[-1].path)) == (18, str(page))


def test_a_setup_on_one_line(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Title\n\n<!-- setup: x = 1 -->\n```python\nx\n```\n")
    assert [(b.language, b.text, b.line) for b in blocks_of(page)] == [("setup", "x = 1", 3), ("python", "x", 5)]
