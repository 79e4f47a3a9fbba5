"""The link checker that ``make docs`` runs, and the pages themselves."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("**/*.md")])


def load_checker():
    spec = importlib.util.spec_from_file_location("check_links", ROOT / "docs" / "check_links.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


check_links = load_checker()


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_links_of_our_pages(page):
    assert list(check_links.broken(page)) == []


def test_the_checker_finds_broken_links(tmp_path, capsys):
    (tmp_path / "other page.md").write_text("# A `code` & heading\n# Twice\n# Twice\n```\n# no heading\n```\n")
    page = tmp_path / "page.md"
    page.write_text(
        "[web](https://nowhere.invalid/x) [mail](mailto:a@b) [ok](other%20page.md#a-code--heading) [ok](<#here>)\n"
        "# Here\n[ok](other%20page.md#twice-1 'title') ![ok](.)\n"
        "```\n[in code](absent1.md)\n```\n`[in code](absent2.md)`\n"
        "[no](absent.md) ![no](absent.png 'title') [no](#there) [no](other%20page.md#no-heading)\n"
        '[label]: absent-label.md\n<img width="3" src="absent-html.png">\n'
    )
    assert check_links.main([str(page), str(tmp_path / "gone.md")]) == 1
    wrong = [line.removeprefix(f"{tmp_path}/") for line in capsys.readouterr().err.splitlines()]
    assert wrong == [
        "gone.md: no such page",
        "page.md: absent.md: no such file",
        "page.md: absent.png: no such file",
        "page.md: #there: no such heading",
        "page.md: other%20page.md#no-heading: no such heading",
        "page.md: absent-label.md: no such file",
        "page.md: absent-html.png: no such file",
    ]
    assert check_links.main([str(tmp_path / "other page.md")]) == 0
    assert check_links.main([]) == 2
