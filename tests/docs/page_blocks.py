"""The code blocks of a page, with what the page says about them in comments that readers do not see.

Before a block may stand, in an HTML comment of its own,

``<!-- setup: … -->``
    Python that runs at this place, in the page's namespace: what the reader is supposed to have, such as a model.
``<!-- not run: why -->``
    The next block is not run, for this reason.
"""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
OPENING = re.compile(r"^(?P<indent> *)(?P<fence>```+|~~~+) *(?P<info>[^\n`]*)$")
SETUP = re.compile(r"<!--\s*setup:(?P<code>.*?)-->", re.DOTALL)
NOT_RUN = re.compile(r"<!--\s*not run:(?P<reason>.*?)-->", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A block: its language (``setup`` for a comment's code), its text, its first line's number, why it is not run."""

    page: Path
    language: str
    text: str
    line: int
    not_run: str | None = None

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT) if self.page.is_relative_to(ROOT) else self.page}:{self.line}"


def pages() -> list[Path]:
    """Return the pages that users read: the READMEs, and every page under docs/, written by hand or script."""
    return [ROOT / "README.md", *sorted(ROOT.glob("plugins/*/README.md")), *sorted((ROOT / "docs").glob("**/*.md"))]


def blocks_of(page: Path) -> list[Block]:
    """Return a page's fenced blocks and setups in their order."""
    found: list[Block] = []
    reason: str | None = None
    lines = page.read_text(encoding="utf-8").splitlines()
    number = 0
    while number < len(lines):
        opening = OPENING.match(lines[number])
        if opening:
            start = number + 1
            number = start
            closing = re.compile(rf"^ *{opening['fence']}+ *$")
            while number < len(lines) and not closing.match(lines[number]):
                number += 1
            if number == len(lines):
                raise ValueError(f"{page}:{start}: a block without an end")
            language = opening["info"].split()[0] if opening["info"].strip() else ""
            text = textwrap.dedent("\n".join(lines[start:number]))
            found.append(Block(page, language, text, start + 1, reason))
            reason = None
        elif lines[number].lstrip().startswith("<!--"):
            start = number
            while "-->" not in lines[number]:
                number += 1
                if number == len(lines):
                    raise ValueError(f"{page}:{start + 1}: a comment without an end")
            comment = "\n".join(lines[start : number + 1])
            if setup := SETUP.search(comment):
                before = comment[: setup.start("code")].count("\n")
                code = setup["code"]
                skipped = len(code) - len(code.lstrip("\n"))
                found.append(
                    Block(page, "setup", textwrap.dedent(code.lstrip("\n")).strip(), start + before + skipped + 1)
                )
            elif skip := NOT_RUN.search(comment):
                reason = " ".join(skip["reason"].split())
        number += 1
    return found
