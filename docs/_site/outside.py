"""A hook of the site: the Markdown files outside docs/ that belong in it, and links that lead out of docs/.

Pages link to files of the repository as they lie there, so that they can be read in the repository too. Here such a
link leads to the page that the file became; where it became none (a script, a test), the text stays without a link.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
_PIECES = re.compile(
    r"^(?P<indent> *)(?P<fence>```+|~~~+).*?^ *(?P=fence)[ \t]*$"  # a block of code
    r"|(?P<tick>`+)[^\n]*?(?P=tick)"  # code in a line
    r"|(?P<comment><!--.*?-->[ \t]*\n?)"
    r"|!?\[(?P<text>(?:[^\[\]]|\[[^\]]*\])*)\]\((?P<target>[^)\s]+)(?P<title>\s+\"[^\"]*\")?\)",
    re.MULTILINE | re.DOTALL,
)


def brought_in() -> dict[str, str]:
    """Return the pages made from files outside docs/: the page's path in the site, and the file's in the repository."""
    found = {"changes.md": "CHANGELOG.md"}
    for readme in sorted(ROOT.glob("plugins/*/README.md")):
        found[f"shelf/{readme.parent.name}.md"] = readme.relative_to(ROOT).as_posix()
    return found


def on_files(files: Files, config: Any) -> Files:
    """Add the pages made from files outside docs/."""
    for page, origin in brought_in().items():
        files.append(File.generated(config, page, content=(ROOT / origin).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Let links lead to pages of the site, and take out comments, which are for writers and tests."""
    uri = page.file.src_uri
    return rewritten(markdown, uri, brought_in().get(uri, f"docs/{uri}"), {file.src_uri for file in files})


def rewritten(markdown: str, page: str, origin: str, known: set[str]) -> str:
    """Return a page's Markdown as the site has it.

    Parameters
    ----------
    markdown
        The text, as it lies in the repository.
    page
        The page's path in the site's source.
    origin
        The file's path in the repository, which its links start from.
    known
        The paths of all files of the site's source.
    """

    def piece(match: re.Match[str]) -> str:
        if match["comment"] is not None:
            return ""
        if match["target"] is None:  # code
            return match.group()
        text = _PIECES.sub(piece, match["text"])  # a picture may be what is clicked on
        mark = "!" if match.group().startswith("!") else ""
        path, sharp, anchor = match["target"].partition("#")
        if not path or re.match(r"[a-z][a-z0-9+.-]*:|/", path, re.IGNORECASE):
            return f"{mark}[{text}]({match['target']}{match['title'] or ''})"
        there = posixpath.normpath(posixpath.join(posixpath.dirname(origin), unquote(path)))
        if not (ROOT / there).exists() and not there.startswith("docs/"):
            return match.group()  # left for the strict build to complain about
        uri = {file: uri for uri, file in brought_in().items()}.get(there, there.removeprefix("docs/"))
        if uri in known and (there.startswith("docs/") or uri != there):
            relative = os.path.relpath(uri, posixpath.dirname(page) or ".")
            return f"{mark}[{text}]({relative}{sharp}{anchor}{match['title'] or ''})"
        return match.group() if there.startswith("docs/") and not (ROOT / there).exists() else text

    return _PIECES.sub(piece, markdown)
