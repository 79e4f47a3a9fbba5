"""A hook of the site: equations become MathML when it is built, so that readers need neither scripts nor a network.

Browsers draw it with a font for mathematics, where the reader has one. For those who have none the site has one that
comes with matplotlib.
"""

from __future__ import annotations

import html
import importlib.util
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

_EQUATION = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">(?:\\\((?P<inline>.*?)\\\)|\\\[(?P<display>.*?)\\\])</(?P=tag)>', re.DOTALL
)
# What the converter does not know, and a sign that few fonts have.
_UNKNOWN = {r"\arg": r"\operatorname{arg}\,", r"\setminus": r"\smallsetminus"}

_PRIME = re.compile(r"<msup><mi>([^<]+)</mi><m[io]>(?:&#x02032;|′)</m[io]></msup>")


def on_files(files: Files, config: Any) -> Files:
    """Add the font."""
    matplotlib = importlib.util.find_spec("matplotlib")
    if matplotlib is None or matplotlib.origin is None:
        raise PluginError("the font for equations comes with matplotlib, which is not installed")
    font = Path(matplotlib.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSerif.ttf"
    files.append(File.generated(config, "assets/equations.ttf", abs_src_path=str(font)))
    return files


def on_page_content(content: str, page: Any, **rest: Any) -> str:
    """Replace each equation by MathML."""
    try:
        return _EQUATION.sub(_mathml, content)
    except ValueError as error:
        raise PluginError(f"{page.file.src_uri}: {error}") from error


def _mathml(match: re.Match[str]) -> str:
    display = match["inline"] is None
    latex = html.unescape(match["display"] if display else match["inline"]).strip()
    known = re.sub(r"\\[a-zA-Z]+", lambda command: _UNKNOWN.get(command.group(), command.group()), latex)
    markup = convert(known, display="block" if display else "inline")
    if left := re.findall(r"\\[a-zA-Z]+", re.sub(r"<annotation.*?</annotation>", "", markup)):
        raise ValueError(f"no MathML for {left[0]} in the equation {latex}")
    # Where the font has no prime of its own for superscripts, one in a superscript can hardly be seen.
    markup = _PRIME.sub(r'<mrow><mi>\1</mi><mo class="prime" lspace="0" rspace="0.1em">&#x02032;</mo></mrow>', markup)
    return f'<div class="equation">{markup}</div>' if display else markup
