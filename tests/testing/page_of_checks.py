"""Writes docs/checks.md, the reference of tags and checks, from the checks themselves: ``make conformance``."""

from __future__ import annotations

import os
from pathlib import Path

from mutants import MUTANTS

from attribkit.testing import TAGS, all_checks
from attribkit.testing.registry import _IMPLIED, EXACT

PAGE = Path(__file__).parent.parent.parent / "docs" / "checks.md"

HEAD = Path(__file__).with_name("checks.head.md")


_OF_TABLES = """All but the receptive field are asked only of methods that leave convolutions, pools and linear layers
to their ordinary derivative: a table of class `InverseMethod` that rewrites rectifiers and contrast norms only (layers
that say `ordinary = True` do not count as rewriting), or a method that claims an exact definition."""


def _table(tag: str | None) -> str:
    rows = "| Check | Claim |\n| --- | --- |\n"
    for check in all_checks().values():
        if (tag in check.tags) if tag else not check.tags:
            rows += f"| `{check.name}` | {check.claim} |\n"
    return rows


def page() -> str:
    text = f"{HEAD.read_text(encoding='utf-8')}\n## Every method\n\n"
    text += f"Whatever its tags, a method is held to these.\n\n{_table(None)}\n## Tags\n\n"
    text += "`Method.tags` is a set of these words. A tag that does not exist is a failure of `check_declaration`.\n\n"
    for tag, meaning in TAGS.items():
        text += f"### `{tag}`\n\nSays: {meaning}."
        if tag in EXACT:
            text += " A method of this name claims it without the tag."
        if tag in _IMPLIED:
            text += f" Implies {', '.join(f'`{each}`' for each in sorted(_IMPLIED[tag]))}."
        if any(tag in check.tags for check in all_checks().values()):
            text += f"\n\n{_table(tag)}"
        else:
            text += "\n"
        if tag == "inverse":
            text += f"\n{_OF_TABLES}\n"
        text += "\n"
    text += (
        "## Does the kit bite?\n\n"
        f"`tests/testing/mutants.py` holds {len(MUTANTS)} faulty methods and engines, each with the check that must "
        "catch it.\nThe tests run that check on each; `make mutants` runs the whole kit. Every check catches some.\n\n"
        "| Check | Faults it is tested with |\n| --- | --- |\n"
    )
    for check in sorted(all_checks()):
        caught = ", ".join(_words(mutant.name) for mutant in MUTANTS.values() if mutant.caught_by == check)
        text += f"| `{check}` | {caught} |\n"
    return text


def _words(name: str) -> str:
    spaced = "".join(f" {char.lower()}" if char.isupper() else char for char in name)
    return spaced.replace("_", " ").strip()


def main() -> None:
    draft = PAGE.with_name(".checks.md.new")
    draft.write_text(page(), encoding="utf-8")
    os.replace(draft, PAGE)


if __name__ == "__main__":
    main()
