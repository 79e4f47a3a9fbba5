"""Write docs/benchmarks.md and its picture from what ``make bench`` left in out/bench; nothing is measured here."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
BENCH = DOCS.parent / "out" / "bench"
PICTURE = "images/growth.png"

Row = dict[str, Any]


def read(name: str) -> Row:
    """Return a benchmark's results; exit where it has not been run."""
    path = BENCH / f"{name}.json"
    if not path.exists():
        sys.exit(f"{path} is missing: run `make bench` first")
    found: Row = json.loads(path.read_text())
    return found


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def ratio(row: Row) -> str:
    """Return a ratio's median with the smallest and largest."""
    return f"{row['median']:.2f}× ({row['min']:.2f}–{row['max']:.2f})"


def occlusion(rows: list[Row]) -> str:
    """Return the table of occlusion against Captum."""
    rows = sorted(rows, key=lambda row: (row["threads"], -row["stride"], row["model"].rpartition("/")[2]))
    return table(
        ["network", "window / stride", "threads", "attribkit", "aim", "bound", "dense control", "the model itself", "Captum's"],
        [
            [
                row["model"].rpartition("/")[2],
                f"{row['window']} / {row['stride']}",
                str(row["threads"]),
                ratio(row["auto"]),
                f"{row['target']:g}×" if row["target"] else "",
                f"{row['bound']:.1f}×",
                f"{row['dense']['median']:.2f}×",
                f"{row['full']['median']:.2f}×",
                f"{statistics_of(row['seconds']['captum']):.1f} s, {row['per_eval']} a step",
            ]
            for row in rows
        ],
    )


def statistics_of(values: list[float]) -> float:
    """Return the median."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def families(rows: list[Row]) -> str:
    """Return in words how far scores were from the model's own."""
    used = [row for row in rows if row["incremental"]]
    worst = max(rows, key=lambda row: row["error"])
    full = ", ".join(row["model"] for row in rows if not row["incremental"])
    return (
        f"At every position ({rows[0]['window']} / {rows[0]['stride']}) the scores of {len(rows)} networks, one of a "
        f"family of timm's each, were compared with the model's own: the largest difference is {worst['error']:.1e} of the "
        f"largest |logit| ({worst['model']}). Incremental inference was used for {len(used)} of them; in full, for a window "
        f"changes nearly everything there: {full}.\n"
    )


def projections(cases: dict[str, Row]) -> str:
    """Return the table of projections against Captum."""
    return table(
        ["network and layer", "by the clock", "by CPU time", "seconds"],
        [
            [name, ratio(row["faster_wall"]), ratio(row["faster_cpu"]), f"{row['seconds']['median']:.2f}"]
            for name, row in cases.items()
        ],
    )


def growth(series: dict[str, Row]) -> str:
    """Draw the curves and return the table of exponents."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    kinds = list(dict.fromkeys(name.rpartition(", ")[2] for name in series))
    figure, axes = plt.subplots(1, len(kinds), figsize=(3.3 * len(kinds), 3.0), layout="constrained")
    for axis, kind in zip(axes, kinds, strict=True):
        for name, row in series.items():
            if name.rpartition(", ")[2] == kind:
                axis.loglog(row["sizes"], row["seconds"], "o-", markersize=4, label=name.rpartition(", ")[0])
        axis.set_xlabel(kind)
        axis.grid(visible=True, which="both", linewidth=0.3)
        axis.legend(fontsize=8)
    axes[0].set_ylabel("seconds")
    figure.savefig(DOCS / PICTURE, dpi=110)
    plt.close(figure)
    return table(
        ["", "from", "to", "seconds", "exponent"],
        [
            [
                name,
                str(row["sizes"][0]),
                str(row["sizes"][-1]),
                f"{row['seconds'][0]:.3f} to {row['seconds'][-1]:.3f}",
                f"{row['exponent']:.2f}",
            ]
            for name, row in series.items()
        ],
    )
