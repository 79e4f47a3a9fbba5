"""Names, labels and errors that are HTML: on every page they are text."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

import attribkit as ak
from attribkit.features import galleries
from attribkit.report import notebook

HOSTILE = "<script>alert('x')<!--\"><img src=x onerror=alert(1)>&amp;"
FILE = HOSTILE.replace("/", "")  # as a file may be called

ARGUMENTS = ("--model", "hostile_nets:small", "--labels", "labels.txt")

MODULE = """
import torch
from torch import nn

class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 5, stride=4)
        self.relu = nn.ReLU()
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.relu(self.conv(x)).mean((2, 3)))

def small():
    torch.manual_seed(0)
    return Small().eval()
"""


class Page(HTMLParser):
    """What is element and what is text."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.text = [], ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def check(html):
    """Check that nothing hostile became an element, an attribute or part of a script; return the text."""
    page = Page(html)
    scripts = re.findall(r"<script", html)
    assert len(scripts) <= 1
    assert HOSTILE not in html
    assert FILE not in html
    for tag, attributes in page.elements:
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        assert attributes.get("src") != "x"
    return page.text


@pytest.fixture
def workplace(tmp_path, monkeypatch, one_thread):
    """Pictures of a hostile name, one of which is none, in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("hostile_nets.py").write_text(MODULE)
    Path("labels.txt").write_text("\n".join([HOSTILE, "b" + HOSTILE, "c"]))
    Path("in").mkdir()
    for number in range(2):
        pixels = torch.randint(256, (40, 40, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(number))
        Image.fromarray(pixels.numpy()).save(f"in/{number}{FILE}.png", "PNG")
    Path(f"in/9{FILE}.png").write_bytes(b"none")
    return tmp_path


def run(*arguments):
    from click.testing import CliRunner

    from attribkit.cli import main

    return CliRunner().invoke(main, arguments)


def test_the_pages_of_explain_and_of_a_store(workplace):
    result = run("explain", "in", *ARGUMENTS, "--method", "gradient", "--out", "out", "--store")
    assert result.exit_code == 1, result.output  # one picture is none
    assert Path("out/report.html").exists(), result.output
    text = check(Path("out/report.html").read_text("utf-8"))
    assert FILE in text
    assert HOSTILE in text  # a class's name
    assert json.loads(Path("out/summary.json").read_text())["images"]
    again = run("report", "out", *ARGUMENTS, "--out", "page")
    assert again.exit_code == 1, again.output
    text = check(Path("page/report.html").read_text("utf-8"))
    assert FILE in text
    assert HOSTILE in text


def test_the_pages_of_features(workplace):
    for path in Path("in").glob("9*"):
        path.unlink()
    arguments = ("--data", "in", "--layer", "conv", "--top", "1", "--out", "pages")
    result = run("features", *arguments, "--model", "hostile_nets:small")
    assert result.exit_code == 0, result.output
    pages = sorted(Path("pages").glob("*.html"))
    assert len(pages) == 2
    assert FILE in "".join(check(page.read_text("utf-8")) for page in pages)


def test_what_a_diagnosis_writes(workplace):
    result = run("diagnose", *ARGUMENTS[:2], "--out", "pages" + FILE)
    assert result.exit_code == 0, result.output
    written = [path for path in Path("pages" + FILE).rglob("*") if path.is_file()]
    assert written
    for path in written:
        if path.suffix in (".html", ".svg"):
            check(path.read_text("utf-8"))


def test_what_a_notebook_shows():
    net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)).eval()
    found = ak.attribute(net, torch.randn(1, 3, 4, 4), method="gradient")
    found.method, found.target = HOSTILE, HOSTILE
    assert HOSTILE in check(notebook.attribution_html(found))


def test_every_template_escapes():
    from attribkit.report import page

    for environment in (galleries._environment(), page.environment()):
        assert environment.autoescape is True
        assert environment.from_string("{{ x }}").render(x="<'\">") == "&lt;&#39;&#34;&gt;"
    for template in Path(page.__file__).parent.rglob("*.j2"):
        assert "|safe" not in template.read_text("utf-8").replace(" ", "")
    for template in (Path(galleries.__file__).parent / "templates").glob("*.j2"):
        assert "|safe" not in template.read_text("utf-8").replace(" ", "")
