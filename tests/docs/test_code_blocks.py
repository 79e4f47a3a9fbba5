"""Every Python block of the documentation runs: a page's blocks in their order, in one namespace, as a reader would."""

from __future__ import annotations

import ast
import re
import sys
import types

import page_blocks
import pytest
import timm
import torch
import torchvision
from page_blocks import Block, blocks_of, pages

from attribkit import plugins

# Blocks that cannot run, by page: no more than these, each with its reason in the page.
MAY_NOT_RUN = {"docs/evaluation.md": 1, "plugins/attribkit-quantus/README.md": 2}
WRITTEN = {"", "diff", "html", "ini", "json", "pytb", "python", "sh", "text", "toml", "yaml"}

# What the reader of a README has. (On pages under docs/ a comment says it, where it is needed.)
MODEL_AND_IMAGES = """
import timm
import torch

model = timm.create_model("resnet18").eval()
images = torch.rand(2, 3, 64, 64)
background = torch.rand(4, 3, 64, 64)
"""
BEFORE = {
    "README.md": """
from PIL import Image

image = Image.effect_noise((300, 200), 64).convert("RGB")
""",
    **{f"plugins/attribkit-{name}/README.md": MODEL_AND_IMAGES for name in ("cam", "captum", "lrp", "paths")},
}


def python_blocks(page) -> list[Block]:
    first = BEFORE.get(name_of(page))
    before = [] if first is None else [Block(page, "setup", first, 1)]
    return before + [block for block in blocks_of(page) if block.language in ("python", "setup")]


def name_of(page) -> str:
    return page.relative_to(page_blocks.ROOT).as_posix()


RUN = [page for page in pages() if any(block.language == "python" for block in blocks_of(page))]


@pytest.fixture
def random_weights(monkeypatch):
    """Weights cannot be fetched here: ask for pretrained ones, and get drawn ones."""
    create, get = timm.create_model, torchvision.models.get_model
    monkeypatch.setattr(timm, "create_model", lambda *args, **kw: create(*args, **{**kw, "pretrained": False}))
    monkeypatch.setattr(torchvision.models, "get_model", lambda *args, **kw: get(*args, **{**kw, "weights": None}))


@pytest.fixture
def shelf(request, tmp_path_factory, monkeypatch):
    """For pages about the distributions under plugins/: these are there, as if they were installed."""
    if getattr(request, "param", None):
        installed = tmp_path_factory.mktemp("installed")
        for project in sorted(page_blocks.ROOT.glob("plugins/*/pyproject.toml")):
            entries = re.search(r"^\[project\.entry-points\.attribkit\]\n(?:.+\n)+", project.read_text(), re.MULTILINE)
            info = installed / f"{project.parent.name.replace('-', '_')}-0.1.0.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project.parent.name}\nVersion: 0.1.0\n")
            (info / "entry_points.txt").write_text(entries[0].replace("project.entry-points.", "").replace('"', ""))
            monkeypatch.syspath_prepend(str(project.parent / "src"))
        monkeypatch.syspath_prepend(str(installed))
        plugins.reset()
        yield
        plugins.reset()
    else:
        yield


def run(blocks: list[Block], module: types.ModuleType) -> None:
    for block in blocks:
        if block.not_run is None:
            source = "\n" * (block.line - 1) + block.text
            exec(compile(source, str(block.page), "exec"), module.__dict__)  # its line numbers are the page's


def about_the_shelf(page) -> bool:
    return "plugins" in page.parts or page.name in ("shelf.md", "migration.md")


@pytest.mark.parametrize(
    ("page", "shelf"), [(page, about_the_shelf(page)) for page in RUN], ids=map(name_of, RUN), indirect=["shelf"]
)
def test_blocks_run(page, shelf, tmp_path, monkeypatch, random_weights, one_thread):
    module = types.ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)  # so that what a block defines has a home
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    torch.manual_seed(0)
    run(python_blocks(page), module)


@pytest.mark.parametrize("page", pages(), ids=map(name_of, pages()))
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
                left_out[name_of(page)] = left_out.get(name_of(page), 0) + 1
    assert left_out == MAY_NOT_RUN, "not run, by page, and what is allowed"


def test_python_does_not_hide_in_blocks_without_a_language():
    for page in pages():
        for block in blocks_of(page):
            if block.language == "":
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
