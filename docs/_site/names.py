"""A hook of the site: a public name in a line of text, such as `ak.attribute`, leads to its place in the API reference.

A page names what it talks about as code; it need not know where that is described. In the reference itself, where
docstrings say `Attribution` alone, so does the last part of a name, if it has a capital or an underscore: other words
are more often an argument of that name.
"""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from typing import Any

from mkdocs.structure.files import Files

_DIRECTIVE = re.compile(r"^::: (?P<name>[\w.]+)$", re.MULTILINE)
_KEPT = r"(?P<keep><(?P<tag>a|autoref|b|pre|h[1-6])\b.*?</(?P=tag)>)"
_NAMED = re.compile(_KEPT + r"|<code>(?P<name>(?:ak|attribkit)(?:\.\w+)+)(?:\([^<]*\))?</code>", re.DOTALL)
_SHORT = re.compile(_KEPT + r"|<code>(?P<name>\w*[A-Z_]\w*)</code>", re.DOTALL)
_pages: dict[str, str] = {}  # a public name: the page that describes it


def on_files(files: Files, config: Any) -> Files:
    """Note which page describes which name."""
    _pages.clear()
    for file in files.documentation_pages():
        if file.src_uri.startswith("api/"):
            _pages.update(dict.fromkeys(_DIRECTIVE.findall(file.content_string), file.url))
    return files


def on_page_content(content: str, page: Any, **rest: Any) -> str:
    """Make links of the names; those in headings, in blocks of code and in links stay as they are."""
    last = {name: name.rpartition(".")[2] for name in _pages}
    counts = Counter(last.values())
    short = {part: name for name, part in last.items() if counts[part] == 1}

    def link(match: re.Match[str]) -> str:
        given = match["name"] or ""
        name = short.get(given, re.sub(r"^ak\.", "attribkit.", given))
        if name not in _pages:
            return match.group()
        target = posixpath.relpath(_pages[name], posixpath.dirname(page.url) or ".")
        return f'<a class="name" href="{target}#{name}">{match.group()}</a>'

    content = _NAMED.sub(link, content)
    return _SHORT.sub(link, content) if page.file.src_uri.startswith("api/") else content
