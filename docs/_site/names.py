"""A hook of the site: a public name in a line of text, such as `ak.attribute`, leads to its place in the API reference.

A page names what it talks about as code; it need not know where that is described.
"""

from __future__ import annotations

import posixpath
import re
from typing import Any

from mkdocs.structure.files import Files

_DIRECTIVE = re.compile(r"^::: (?P<name>[\w.]+)$", re.MULTILINE)
_NAMED = re.compile(
    r"(?P<keep><(?P<tag>a|pre|h[1-6])\b.*?</(?P=tag)>)|<code>(?P<name>(?:ak|attribkit)(?:\.\w+)+)(?P<call>\([^<]*\))?</code>",
    re.DOTALL,
)
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

    def link(match: re.Match[str]) -> str:
        name = re.sub(r"^ak\.", "attribkit.", match["name"] or "")
        if name not in _pages:
            return match.group()
        target = posixpath.relpath(_pages[name], posixpath.dirname(page.url) or ".")
        return f'<a class="name" href="{target}#{name}">{match.group()}</a>'

    return _NAMED.sub(link, content) if not page.file.src_uri.startswith("api/") else content
