"""``docs/zoo.md``: the results of the zoo run, one row a family."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .names import families, family, own_names
from .real import TOLERANCE

Record = dict[str, Any]

HEAD = """# The zoo

Written by `make zoo`; do not edit. timm {timm}, torch {torch}, on the CPU.

attribkit is run on every model that timm has of its own.

1. **All of them on the meta device** (shapes without numbers): `inspect`, and `gradient`, `guided_backprop` and
   `deconvnet` forward and back. A second observer, below torch's functions at ATen's dispatcher, sees every activation;
   each must belong to a site that is rewritten, is a gate, or is listed with the reason why it is left plain.
   **{passed} of {models} models pass.** They hold {sites:,} sites; {rectifiers:,} of the operations are rectifiers.
2. **The smallest of every family with real numbers** (float64, random weights, eval mode): `gradient` against autograd,
   `guided_backprop` and `deconvnet` against a reference that edits autograd's own graph and shares no code with the
   engine, `occlusion` against a loop over windows. **{agreed} of {families} families agree** to {tolerance:g} of the
   reference's largest value. The largest error of the first three is {inverse}, of occlusion {occlusion}.

What a fresh model leaves degenerate is drawn first: a parameter that is one constant below 0.01 (zero heads, layer
scales, biases) from N(0, 0.02), running statistics of batch norms from N(0, 0.1) and U(0.5, 1.5). A reference map that
is zero, or not finite, counts as a failure. The target is the most probable class or, where the output is no vector of
scores, a weighted sum of it.

What is left plain, and why:

- *gates* are never rectified, nor anything inside them;
- *inline* operations are non-linear but none of the rectifiers: bare functions in a model's forward;
- *max pools* keep their derivative in guided backprop; the deconvnet unpools them through the switches;
- *norms*, *attention* and *products* of two signals have no inverse layer in either method.

## By family

*On meta*: how many of the family's models pass part 1. The rest is part 2: *rewritten* by guided backprop and the
deconvnet, *error* the largest of the four methods.

| family | on meta | smallest | input | sites | rewritten | left plain | error | notes |
|---|---|---|---|---|---|---|---|---|
"""


def write(path: Path, meta: dict[str, Record], real: dict[str, Record], versions: dict[str, str]) -> None:
    """Write the page: to a file beside it first, so that it is whole or as it was.

    Parameters
    ----------
    path
        The page.
    meta, real
        Results of the two parts by model.
    versions
        Of timm and torch.
    """
    beside = path.with_name(path.name + ".part")
    beside.write_text(render(meta, real, versions))
    os.replace(beside, path)


def render(meta: dict[str, Record], real: dict[str, Record], versions: dict[str, str]) -> str:
    """Return the page's text."""
    names = own_names()
    by_family = {record["family"]: record for record in real.values() if "family" in record}
    rows, agreed = [], 0
    for one in families():
        members = [name for name in names if family(name) == one]
        passed = sum(name in meta and not meta[name]["failures"] for name in members)
        record = by_family.get(one)
        agreed += record is not None and not record["failures"]
        rows.append(_row(one, f"{passed} of {len(members)}", record))
    found = [meta[name] for name in names if name in meta]
    errors = [record["errors"] for record in by_family.values()]
    head = HEAD.format(
        **versions,
        passed=sum(not record["failures"] for record in found),
        models=len(names),
        sites=sum(record.get("sites", 0) for record in found),
        rectifiers=sum(record.get("rectifiers", 0) for record in found),
        agreed=agreed,
        families=len(rows),
        tolerance=TOLERANCE,
        inverse=_error(error for each in errors for method, error in each.items() if method != "occlusion"),
        occlusion=_error(each["occlusion"] for each in errors),
    )
    failures = [f"- `{r['name']}`: {f}" for r in [*found, *real.values()] for f in r["failures"][:3]]
    tail = ["", "## Failures", "", *failures] if failures else []
    return head + "\n".join([*rows, *_totals(found), *tail]) + "\n"


def _row(one: str, passed: str, record: Record | None) -> str:
    if record is None:
        return f"| {one} | {passed} | – | | | | | | not run |"
    notes = [record["note"]] if record["note"] else []
    if record["target"] != "class":
        notes.append(f"target: {record['target']}")
    if record["failures"]:
        notes.append(f"**fails**: {record['failures'][0]}")
    cells = [
        one,
        passed,
        f"`{record['name']}`, {record['parameters'] / 1e6:.1f} M",
        "×".join(map(str, record["input"])),
        record["sites"],
        _rewritten(record["rewritten"]),
        left(record["left"]),
        _error(record["errors"].values()),
        "; ".join(notes).replace("|", "/"),
    ]
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def _rewritten(rewritten: dict[str, dict[str, int]]) -> str:
    parts = []
    for kind in dict.fromkeys(kind for done in rewritten.values() for kind in done):
        counts = {method: done.get(kind, 0) for method, done in rewritten.items()}
        where = "" if len(set(counts.values())) == 1 else " (deconvnet)"
        parts.append(f"{kind.replace('_', ' ')}: {max(counts.values())}{where}")
    return ", ".join(parts) or "none"


def left(found: dict[str, int]) -> str:
    """Return what was left plain in short: kinds with their numbers, and the operations of gates and inline ones."""
    kinds: Counter[str] = Counter()
    operations: dict[str, Counter[str]] = {}
    for key, count in found.items():
        kind, operation, _ = key.split("|")
        kinds[kind] += count
        operations.setdefault(kind, Counter())[operation] += count
    words = {"nonlinear": "inline", "gate": "gates", "max_pool": "max pools", "norm": "norms", "product": "products"}
    parts = []
    for kind, count in sorted(kinds.items()):
        part = f"{words.get(kind, kind.replace('_', ' '))}: {count}"
        if kind in ("gate", "nonlinear"):
            part += f" ({', '.join(sorted(operations[kind]))})"
        parts.append(part)
    return ", ".join(parts) or "nothing"


def _error(errors: Iterable[float]) -> str:
    values = list(errors)
    if not values or any(value != value for value in values):
        return "–"
    return "0" if max(values) == 0 else f"{max(values):.0e}"


def _totals(found: list[Record]) -> list[str]:
    """Return a table of what the second observer saw in all models, and what became of it."""
    seen: Counter[str] = Counter()
    plain: Counter[tuple[str, str, str]] = Counter()
    for record in found:
        seen.update(record.get("operations", {}))
        for key, count in record.get("left", {}).items():
            kind, operation, why = key.split("|")
            plain[kind, operation, why.replace("guided_backprop", "the method")] += count
    rows = [
        f"| {kind.replace('_', ' ')} | `{op}` | {count:,} | {why} |" for (kind, op, why), count in sorted(plain.items())
    ]
    return [
        "",
        "## In all models together",
        "",
        "What guided backprop left plain, by operation:",
        "",
        "| kind | operation | sites | why |",
        "|---|---|---|---|",
        *rows,
    ]
