"""Writes docs/conformance-of-others.md: what the kit finds in Captum and Zennit, with the counter-examples it prints.

Run it from the repository's root: ``python tests/testing/report_others.py``, or ``make conformance``.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import torch
from others import OTHERS

from attribkit.testing import CheckResult, checks_for, run_check

EXAMPLES = 40
SEED = 0

HEAD = """# What the checks find in Captum and Zennit

The [checks](checks.md) hold any attribution method to what it claims, so they can be run on other libraries
too. Here they are run through a thin adapter (`tests/testing/others.py`) on Captum {captum} and Zennit
{zennit}, with torch {torch}: {examples} examples for each check, seed {seed}. This page is written by `make
conformance`; every counter-example is the smallest network that was found, as the kit prints it.

A failed check does not always mean a defect. Neither library promises all of this: both say, for example, that
they rewrite modules of class `nn.ReLU`, so they differ from the definition of guided backprop wherever a
rectifier is of another class or a function. What matters to a user is that nothing says so when it happens. The
adapters pass the caller's own inputs and restore nothing.

Where a check is about class scores, the libraries' own targets are used. Units of a layer, which neither takes
in this form, are given as the only output of a model around the model. Captum's occlusion refuses windows
larger than the image, which the adapter cuts, and strides beyond the window, where it gives Captum the windows one
by one. Zennit's occlusion has a definition of its own and is held to the general checks only.

"""


def run(method_class: type) -> list[CheckResult]:
    method = method_class()
    results = []
    for check in checks_for(method):
        if check.cases is not None and check.cases.get("units") != "always":
            check = replace(check, cases={**check.cases, "units": False})
        results.append(run_check(check, method, examples=EXAMPLES, seed=SEED))
        print(f"{method.name}: {check.name}: {results[-1].status}", file=sys.stderr, flush=True)
    return results


def section(method_class: type, results: list[CheckResult]) -> str:
    failed = [result for result in results if result.status == "failed"]
    text = f"## {method_class.name}\n\n`{method_class.summary}`, held to: {', '.join(sorted(method_class.tags))}. "
    if not failed:
        return f"{text}All {len(results)} checks pass.\n\n"
    passed = len(results) - len(failed)
    text += f"{passed} of {len(results)} checks pass, {len(failed)} fail:\n\n"
    for result in failed:
        text += f"### {method_class.name}: {result.check}\n\n{result.claim}\n\nFound: {result.message}\n\n"
        if result.example:
            text += f"```python\n{result.example.rstrip()}\n```\n\n"
    return text


def page(found: dict[type, list[CheckResult]]) -> str:
    versions = {name: version(name) for name in ("captum", "zennit")}
    text = HEAD.format(**versions, torch=torch.__version__.partition("+")[0], examples=EXAMPLES, seed=SEED)
    text += "| Method | Checks | Failed |\n| --- | --- | --- |\n"
    for method_class, results in found.items():
        failed = ", ".join(f"`{result.check}`" for result in results if result.status == "failed")
        text += f"| `{method_class.name}` | {len(results)} | {failed or 'none'} |\n"
    return text + "\n" + "".join(section(*pair) for pair in found.items()).rstrip() + "\n"


def main() -> None:
    folder = Path(__file__).parent.parent.parent / "docs"
    text = page({method_class: run(method_class) for method_class in OTHERS})
    draft = folder / ".conformance-of-others.md.new"
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, folder / "conformance-of-others.md")


if __name__ == "__main__":
    main()
