"""Check a built site: it is whole, needs no network, and no Markdown was left unread.

Usage: ``python docs/check_site.py out/site``. Prints each fault and exits with 1 if there is one. Needs the standard
library alone.

- Every link, picture, script and style that a page or a style sheet names is a file of the site, every anchor is there.
- Nothing is loaded from another host. (A link to one is no load: it waits for a click.)
- Every picture says what it shows.
- No text looks like Markdown that the renderer did not take for it: a list without a blank line before it, a table
  without its rule, an equation.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

_ELSEWHERE = re.compile(r"[a-z][a-z0-9+.-]*:|//", re.IGNORECASE)
_LOADING = {"audio", "embed", "iframe", "img", "input", "script", "source", "track", "video"}
_CSS_URL = re.compile(r"url\(\s*['\"]?([^'\")]+)|@import\s+['\"]([^'\"]+)")
_LEFT = re.compile(
    r"^(?:[-*+] |\d+\. )\S"  # a list's item
    r"|^\|.*\|$"  # a table's row
    r"|\]\([^)\s]+\)"  # a link
    r"|^#{1,6} \S"  # a heading
    r"|^::: "  # a directive
    r"|\$\$|\\\(|\\\[|```",
    re.MULTILINE,
)
_VERBATIM = {"code", "pre", "script", "style", "math", "annotation", "textarea"}


class Page(HTMLParser):
    """What a page links to, loads, offers as anchors and says."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = set()
        self.silent: list[str] = []
        self.paragraphs: list[str] = []
        self._verbatim = 0
        self._paragraph: list[str] | None = None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what a tag names."""
        given = {name: value or "" for name, value in attrs}
        self.anchors.update(given[name] for name in ("id", "name") if name in given)
        if tag in ("a", "area") and "href" in given:
            self.links.append(given["href"])
        if tag == "link" and "href" in given:
            (self.links if given.get("rel") in ("canonical", "prev", "next") else self.loads).append(given["href"])
        if tag in _LOADING:
            self.loads += [given["src"]] if given.get("src") else []
            self.loads += [part.split()[0] for part in given.get("srcset", "").split(",") if part.strip()]
        if "style" in given:
            self.loads += _css_urls(given["style"])
        if tag == "img" and not given.get("alt", "").strip():
            self.silent.append(given.get("src", "")[:80])
        if tag in _VERBATIM:
            self._verbatim += 1
        if tag in ("p", "li", "td"):
            self._flush()
            self._paragraph = []

    def handle_endtag(self, tag: str) -> None:
        """Note where a paragraph ends."""
        if tag in _VERBATIM and self._verbatim:
            self._verbatim -= 1
        if tag in ("p", "li", "td", "ul", "ol", "table"):
            self._flush()

    def handle_data(self, data: str) -> None:
        """Note what a paragraph says; code stands for itself."""
        if self._paragraph is not None:
            self._paragraph.append("·" if self._verbatim else data)

    def _flush(self) -> None:
        if self._paragraph:
            self.paragraphs.append("".join(self._paragraph).strip())
        self._paragraph = None


def _css_urls(text: str) -> list[str]:
    return [first or second for first, second in _CSS_URL.findall(re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL))]


@cache
def read(path: Path) -> Page:
    """Read a page, once."""
    return Page(path.read_text(encoding="utf-8"))


def missing(target: str, page: Path, site: Path) -> str | None:
    """Say what is wrong with what ``page`` names, if something is."""
    path, _, anchor = target.partition("#")
    path = unquote(path.partition("?")[0])
    there = (site / path.lstrip("/") if path.startswith("/") else page.parent / path).resolve() if path else page
    if not there.is_relative_to(site):
        return "leads out of the site"
    if there.is_dir():
        return "a folder: nothing is shown for it from a disk"
    if not there.is_file():
        return "no such file"
    if anchor and there.suffix == ".html" and anchor != "__skip" and unquote(anchor) not in read(there).anchors:
        return "no such anchor"
    return None


def faults(site: Path) -> Iterator[str]:
    """Yield one line for each fault of the site."""
    site = site.resolve()
    for file in sorted(site.rglob("*.html")):
        name, page = file.relative_to(site), read(file)
        for target in dict.fromkeys(page.loads):
            if target.startswith("data:"):
                continue
            if _ELSEWHERE.match(target):
                yield f"{name}: {target}: loaded from elsewhere"
            elif wrong := missing(target, file, site):
                yield f"{name}: {target}: {wrong}"
        for target in dict.fromkeys(page.links):
            if not _ELSEWHERE.match(target) and (wrong := missing(target, file, site)):
                yield f"{name}: {target}: {wrong}"
        yield from (f"{name}: {source}: a picture without alt text" for source in page.silent)
        for text in page.paragraphs:
            if left := _LEFT.search(text):
                yield f"{name}: Markdown that was not read: {text[left.start() : left.start() + 60]!r}"
    for file in sorted(site.rglob("*.css")):
        for target in _css_urls(file.read_text(encoding="utf-8")):
            if target.startswith(("data:", "#")):
                continue
            wrong = "loaded from elsewhere" if _ELSEWHERE.match(target) else missing(target, file, site)
            if wrong:
                yield f"{file.relative_to(site)}: {target}: {wrong}"


def main(arguments: list[str]) -> int:
    """Check the site in the folder named in ``arguments``; return the exit status."""
    if len(arguments) != 1 or not (Path(arguments[0]) / "index.html").is_file():
        print("usage: check_site.py FOLDER, which holds index.html", file=sys.stderr)
        return 2
    site = Path(arguments[0])
    wrong = list(faults(site))
    for line in wrong:
        print(line, file=sys.stderr)
    if not wrong:
        print(f"{len(list(site.rglob('*.html')))} pages of the site: whole, and nothing is loaded from elsewhere")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
