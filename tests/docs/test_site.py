"""The site that ``make docs`` builds: pages, hooks, the check of what was built, the search without a server."""

from __future__ import annotations

import importlib.util
import inspect
import json
import re
import sys
import types

import click
import page_blocks
import pytest
from page_blocks import ROOT

import attribkit
from attribkit import hookspecs
from attribkit.cli import main

DOCS = ROOT / "docs"


def load(path):
    """Load a script that is no part of a package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def config():
    """The site's configuration, its plugins and hooks loaded."""
    load_config = pytest.importorskip("mkdocs.config").load_config
    with pytest.MonkeyPatch.context() as patch, open(ROOT / ".mkdocs.yml", "rb") as file:
        patch.setenv("NO_MKDOCS_2_WARNING", "1")
        patch.setattr(sys, "path", list(sys.path))
        yield load_config(config_file=file)


def described() -> list[str]:
    """Return the names that the API reference describes."""
    found = []
    for page in DOCS.glob("api/*.md"):
        found += re.findall(r"^::: ([\w.]+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return found


def test_every_page_is_in_the_navigation(config):
    from mkdocs.structure.files import get_files, set_exclusions

    files = get_files(config)
    set_exclusions(files, config)
    files = config.plugins.on_files(files, config=config)  # the hooks' pages among them
    pages = {file.src_uri for file in files.documentation_pages()}
    listed = []

    def walk(nav):
        for item in nav if isinstance(nav, list) else [nav]:
            values = item.values() if isinstance(item, dict) else [item]
            for value in values:
                if isinstance(value, str):
                    listed.append(value)
                else:
                    walk(value)

    walk(config.nav)
    assert pages - set(listed) == set(), "pages that the navigation in .mkdocs.yml lacks"
    assert set(listed) - pages == set(), "pages in the navigation that do not exist"
    assert len(set(listed)) == len(listed)


def test_each_public_name_is_in_the_reference():
    names = described()
    assert len(set(names)) == len(names)
    public = {f"attribkit.{name}" for name in attribkit.__all__}
    for module in ("models", "testing", "datasets", "features", "training", "store", "plugins"):
        loaded = importlib.import_module(f"attribkit.{module}")
        own = {name for name in loaded.__all__ if name not in attribkit.__all__}
        public |= {f"attribkit.{module}.{name}" for name in own}
    for module in ("errors", "progress", "cli.options", "hookspecs"):
        loaded = importlib.import_module(f"attribkit.{module}")
        for name, thing in vars(loaded).items():
            listed = name in getattr(loaded, "__all__", [name])
            ours = (
                listed
                and getattr(thing, "__module__", None) == loaded.__name__
                and (inspect.isclass(thing) or callable(thing))
            )
            if ours and not name.startswith("_") and name not in attribkit.__all__:
                public.add(f"attribkit.{module}.{name}")
    assert public - set(names) == set()


@pytest.mark.parametrize("name", described())
def test_what_the_reference_describes_exists_and_says_what_it_is(name):
    module, _, last = name.rpartition(".")
    thing = getattr(importlib.import_module(module), last)
    if inspect.isclass(thing) or inspect.isfunction(thing):
        assert (thing.__doc__ or "").strip()


def test_each_hook_is_in_the_reference_and_explained():
    hooks = [name for name in vars(hookspecs) if name.startswith("attribkit_")]
    assert len(hooks) >= 4
    page = (DOCS / "plugins.md").read_text(encoding="utf-8")
    for hook in hooks:
        assert f"attribkit.hookspecs.{hook}" in described()
        assert f"### `{hook}(" in page


def test_the_page_of_commands_is_current(capsys):
    commands = load(DOCS / "make_commands.py")
    assert commands.main(["--check"]) == 0, capsys.readouterr().err
    assert commands.main(["--chek"]) == 2
    page = commands.PAGE.read_text(encoding="utf-8")
    for block in page_blocks.blocks_of(commands.PAGE):
        assert max(map(len, block.text.splitlines())) <= 80, block.place
    assert all(f"\n## attribkit {name}\n" in page for name in main.lazy_commands)


def test_a_stale_page_of_commands_is_found(tmp_path, monkeypatch):
    commands = load(DOCS / "make_commands.py")
    monkeypatch.setattr(commands, "PAGE", tmp_path / "commands.md")
    monkeypatch.setitem(main.commands, "whiskers", click.Command("whiskers"))  # a plugin's
    assert commands.main(["--check"]) == 1
    assert commands.main([]) == 0
    assert commands.main(["--check"]) == 0
    assert "whiskers" not in commands.PAGE.read_text(encoding="utf-8")
    commands.PAGE.write_text(commands.PAGE.read_text(encoding="utf-8").replace("--top", "--tpo"), encoding="utf-8")
    assert commands.main(["--check"]) == 1


def test_links_out_of_docs():
    outside = load(DOCS / "_site" / "outside.py")
    known = {"a.md", "b/c.md", "changes.md", "shelf/attribkit-cam.md", "images/demo.png"}
    text = (
        "[a](a.md#x) [`c`](b/c.md 'no title') ![p](images/demo.png)\n<!-- for writers [x](x.md)\n-->\n"
        "[changes](../CHANGELOG.md#0) [cam](../plugins/attribkit-cam/README.md) [script](../tests/oracle.py)\n"
        "`[code](../LICENSE)`\n```\n[code](../LICENSE)\n```\n[web](https://a.b/c) [here](#x) [gone](../gone.md)\n"
    )
    assert outside.rewritten(text, "a.md", "docs/a.md", known) == (
        "[a](a.md#x) [`c`](b/c.md 'no title') ![p](images/demo.png)\n"
        "[changes](changes.md#0) [cam](shelf/attribkit-cam.md) script\n"
        "`[code](../LICENSE)`\n```\n[code](../LICENSE)\n```\n[web](https://a.b/c) [here](#x) [gone](../gone.md)\n"
    )
    readme = "[![p](../../docs/images/demo.png)](../../docs/b/c.md) [attribkit](../../README.md)"
    assert outside.rewritten(readme, "shelf/attribkit-cam.md", "plugins/attribkit-cam/README.md", known) == (
        "[![p](../images/demo.png)](../b/c.md) attribkit"
    )


def test_equations():
    pytest.importorskip("latex2mathml")
    mathml = load(DOCS / "_site" / "mathml.py")
    found = mathml.on_page_content(
        r'<p><span class="arithmatex">\(\arg\max_i a_i &lt; 1\)</span></p><div class="arithmatex">\[ x^2 \]</div>',
        page=None,
    )
    assert found.count("<math") == found.count("</math>") == 2
    assert '<div class="equation"><math' in found
    assert "arithmatex" not in found
    assert "\\" not in found
    text = re.sub(r"<[^>]+>", " ", found)
    assert text.split()[:2] == ["arg", "max"]

    page = types.SimpleNamespace(file=types.SimpleNamespace(src_uri="a.md"))
    with pytest.raises(Exception, match=r"a\.md: no MathML for \\nosuchthing in the equation"):
        mathml.on_page_content(r'<span class="arithmatex">\(\nosuchthing x\)</span>', page=page)


def test_notebooks_become_pages():
    notebooks = load(DOCS / "_site" / "notebooks.py")
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "text"]},
        {
            "cell_type": "code",
            "source": "x",
            "outputs": [
                {"output_type": "stream", "name": "stdout", "text": ["\x1b[31mred\x1b[0m ```\n"]},
                {"output_type": "stream", "name": "stderr", "text": "progress"},
                {
                    "output_type": "display_data",
                    "data": {"text/html": "<table border><td>*x*</table>", "text/plain": "no"},
                },
                {"output_type": "display_data", "data": {"image/png": "aGk=", "text/plain": "<Figure of 1>"}},
                {"output_type": "execute_result", "data": {"text/plain": "3"}},
            ],
        },
        {"cell_type": "code", "source": "", "outputs": []},
    ]
    text, pictures = notebooks.as_markdown(json.loads(json.dumps({"cells": cells})), "a.ipynb")
    assert text == (
        "# Title\ntext\n\n```python\nx\n```\n\n````text\nred ```\n````\n\n"
        '<div data-output="a-1-2"></div>\n\n![What the code above draws (Figure of 1)](a-1-3.png)\n\n'
        '````text\n3\n````\n\n[The notebook itself](a.ipynb){ download="a.ipynb" } to run it.\n'
    )
    assert pictures == {"a-1-3.png": b"hi"}
    page = notebooks.on_page_content('<p>x</p><div data-output="a-1-2"></div>')
    assert page == '<p>x</p><div class="notebook-output"><table class="output" border><td>*x*</table></div>'


def test_names_lead_to_the_reference():
    names = load(DOCS / "_site" / "names.py")
    names._pages.update({"attribkit.attribute": "api/attribution.html", "attribkit.Unit": "api/attribution.html"})

    def linked(content, page):
        file = types.SimpleNamespace(src_uri=page.replace(".html", ".md"))
        return names.on_page_content(content, page=types.SimpleNamespace(url=page, file=file))

    given = "<p><code>ak.attribute(m)</code> <code>attribkit.other</code> <code>Unit</code></p>"
    given += "<a href='x'><code>ak.attribute</code></a><h2><code>ak.attribute</code></h2>"
    whole = "<code>ak.attribute(m)</code>"
    link = f'<a class="name" href="../api/attribution.html#attribkit.attribute">{whole}</a>'
    assert linked(given, "paper/index.html") == given.replace(whole, link)
    docstring = "<p><code>Unit</code> <code>attribute</code></p><b><code>Unit</code></b>"
    link = '<a class="name" href="attribution.html#attribkit.Unit"><code>Unit</code></a>'
    assert linked(docstring, "api/models.html") == docstring.replace("<code>Unit</code>", link, 1)


def test_returns_in_prose_get_their_type():
    pytest.importorskip("griffe")
    extension = load(DOCS / "_site" / "prose_returns.py")
    prose = "Do.\n\nReturns\n-------\nThe map,\nof x.\n\nRaises\n------\nValueError\n    Never."
    assert extension.with_types(prose, "Tensor") == prose.replace("The map,\nof x.", "Tensor\n    The map,\n    of x.")
    proper = "Do.\n\nReturns\n-------\nTensor\n    The map."
    assert extension.with_types(proper, "Tensor") == proper


def test_the_check_of_the_site_finds_faults(tmp_path, capsys):
    check_site = load(DOCS / "check_site.py")
    (tmp_path / "folder").mkdir()
    (tmp_path / "other.html").write_text('<p id="here">text</p>')
    (tmp_path / "style.css").write_text("a { background: url(https://x.y/z.png) } b { background: url('data:x') }")
    good = '<a href="other.html#here">a</a><a href="https://x.y">b</a><img src="data:x" alt="c"><code>- [x](y)</code>'
    index = tmp_path / "index.html"
    index.write_text(good)
    assert check_site.main([str(tmp_path)]) == 1
    assert capsys.readouterr().err == "style.css: https://x.y/z.png: loaded from elsewhere\n"
    (tmp_path / "style.css").write_text("a { background: url(other.html) }")
    assert check_site.main([str(tmp_path)]) == 0
    capsys.readouterr()
    index.write_text(
        '<a href="other.html#there"></a><a href="gone.html"></a><a href="../out.html"></a><a href="folder"></a>'
        '<img src="gone.png"><script src="//x.y/z.js"></script><link rel="stylesheet" href="https://x.y/z.css">'
        "<p>A list:\n- one\n- <code>two</code></p><p>an [odd](link.md) and $$x$$</p><pre># no heading</pre>"
    )
    check_site.read.cache_clear()
    assert check_site.main([str(tmp_path)]) == 1
    assert [line.removeprefix("index.html: ") for line in capsys.readouterr().err.splitlines()] == [
        "gone.png: no such file",
        "//x.y/z.js: loaded from elsewhere",
        "https://x.y/z.css: loaded from elsewhere",
        "other.html#there: no such anchor",
        "gone.html: no such file",
        "../out.html: leads out of the site",
        "folder: a folder: nothing is shown for it from a disk",
        "gone.png: a picture without alt text",
        "Markdown that was not read: '- one\\n- ·'",
        "Markdown that was not read: '](link.md) and $$x$$'",
    ]
    assert check_site.main([]) == 2


def test_the_search_needs_no_server(tmp_path, monkeypatch, browser):
    """A page opened from the disk finds words, and asks no other host for anything."""
    build = pytest.importorskip("mkdocs.commands.build").build
    from mkdocs.config import load_config

    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("# Home\n\nNothing here.\n")
    (tmp_path / "docs" / "other.md").write_text("# Another page\n\nA zebra among horses, $x^2$.\n")
    monkeypatch.setenv("NO_MKDOCS_2_WARNING", "1")
    monkeypatch.setattr(sys, "path", list(sys.path))
    with open(ROOT / ".mkdocs.yml", "rb") as file:
        settings = load_config(
            config_file=file, docs_dir=str(tmp_path / "docs"), site_dir=str(tmp_path / "site"), nav=None, hooks=[]
        )
    build(settings)
    asked = []
    page = browser.new_page()
    page.on("request", lambda request: asked.append(request.url))
    page.goto((tmp_path / "site" / "index.html").as_uri())
    page.get_by_role("textbox", name="Search").click()
    page.get_by_role("textbox", name="Search").press_sequentially("zebra")
    page.locator(".md-search-result__item a").first.click(timeout=20_000)
    page.wait_for_url("**/other.html*")
    page.close()
    assert [url for url in asked if not url.startswith(("file:", "data:", "about:"))] == []
