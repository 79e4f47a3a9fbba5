"""A hook of the site: equations become MathML when it is built, so that readers need neither scripts nor a network."""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError

_EQUATION = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">(?:\\\((?P<inline>.*?)\\\)|\\\[(?P<display>.*?)\\\])</(?P=tag)>', re.DOTALL
)
# What the converter does not know, and a sign that few fonts have.
_UNKNOWN = {r"\arg": r"\operatorname{arg}\,", r"\setminus": r"\smallsetminus"}


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
    return f'<div class="equation">{markup}</div>' if display else markup
