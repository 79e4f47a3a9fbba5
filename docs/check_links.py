"""Check that every relative link in Markdown files leads somewhere: to a file, and to a heading where it names one.

Usage: ``python docs/check_links.py README.md docs/*.md``. Prints each broken link and exits with 1 if there is one.
Needs the standard library alone. Links to other hosts are not followed.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

_CODE = re.compile(r"^(?P<fence>```+|~~~+).*?^(?P=fence)\s*$|(?P<tick>`+)[^\n]*?(?P=tick)", re.MULTILINE | re.DOTALL)
_LINK = re.compile(
    r"\]\(\s*<?(?P<inline>[^)\s>]+)>?(?:\s+[\"'][^)]*)?\)"  # [text](target "title"), ![text](target)
    r"|^\[[^\]]+\]:\s*<?(?P<reference>[^\s>]+)"  # [label]: target
    r"|<(?:a|img|source)\b[^>]*?\b(?:href|src|srcset)=[\"'](?P<html>[^\"']+)",
    re.MULTILINE,
)
_HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*$", re.MULTILINE)
_FENCED = re.compile(r"^(```+|~~~+).*?^\1\s*$", re.MULTILINE | re.DOTALL)


def anchors(text: str) -> set[str]:
    """Return the anchors that a Markdown text's headings get, a repeated one with ``-1``, ``-2``, … behind it."""
    found: set[str] = set()
    for heading in _HEADING.findall(_FENCED.sub("", text)):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        anchor = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        number, unique = 0, anchor
        while unique in found:
            number += 1
            unique = f"{anchor}-{number}"
        found.add(unique)
    return found | set(re.findall(r"<a\s+(?:id|name)=[\"']([^\"']+)", text))


def links(text: str) -> Iterator[str]:
    """Yield the targets of a Markdown text's links and images, in order, those inside code left out."""
    for match in _LINK.finditer(_CODE.sub("", text)):
        yield next(target for target in match.groups() if target)


def broken(page: Path) -> Iterator[str]:
    """Yield one line for each relative link in ``page`` that leads nowhere."""
    for target in links(page.read_text(encoding="utf-8")):
        if re.match(r"[a-z][a-z0-9+.-]*:|//", target, re.IGNORECASE):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / unquote(path) if path else page
        if not file.exists():
            yield f"{page}: {target}: no such file"
        elif anchor and file.suffix == ".md" and unquote(anchor) not in anchors(file.read_text(encoding="utf-8")):
            yield f"{page}: {target}: no such heading"


def main(arguments: list[str]) -> int:
    """Check the pages named in ``arguments``; return the exit status."""
    if not arguments:
        print("usage: check_links.py PAGE.md…", file=sys.stderr)
        return 2
    pages = [Path(argument) for argument in arguments]
    wrong = [f"{page}: no such page" for page in pages if not page.is_file()]
    wrong += [line for page in pages if page.is_file() for line in broken(page)]
    for line in wrong:
        print(line, file=sys.stderr)
    if not wrong:
        print(f"{len(pages)} pages: every relative link leads somewhere")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
