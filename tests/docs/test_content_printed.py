"""What a page shows as printed is what its code prints: a ``text`` block right below a Python block that prints."""

from __future__ import annotations

import contextlib
import io
import sys
import types

import page_blocks
import pytest
import torch

PAGES = [page_blocks.ROOT / "docs" / f"{name}.md" for name in ("engine", "start", "how-to", "faq")]


def printed(page):
    """Run a page's blocks; yield what each block printed that has a text block below it, and that text."""
    module, said = types.ModuleType("page"), None
    sys.modules["page"] = module
    for block in page_blocks.blocks_of(page):
        if block.language == "text" and said:
            yield said, block.text
        said = None
        if block.language in ("python", "setup") and block.not_run is None:
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile("\n" * (block.line - 1) + block.text, str(page), "exec"), module.__dict__)
            said = out.getvalue()


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_printed(page, tmp_path, monkeypatch, one_thread):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "page", sys.modules[__name__])  # put back afterwards
    torch.manual_seed(0)
    pairs = list(printed(page))
    assert pairs, "nothing is printed on this page: leave it out of PAGES"
    for said, shown in pairs:
        assert said.rstrip("\n") == shown.rstrip("\n")
