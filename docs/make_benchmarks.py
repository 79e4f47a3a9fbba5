"""Write docs/benchmarks.md and its picture from what ``make bench`` left in out/bench; nothing is measured here."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable
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
        [
            "network",
            "window / stride",
            "threads",
            "attribkit",
            "aim",
            "first call",
            "bound",
            "dense control",
            "the model itself",
            "Captum's",
        ],
        [
            [
                row["model"].rpartition("/")[2],
                f"{row['window']} / {row['stride']}",
                str(row["threads"]),
                ratio(row["auto"]),
                f"{row['target']:g}×" if row["target"] else "",
                f"{row['first']['median']:.2f}×" if "first" in row else "",
                f"{row['bound']:.1f}×",
                f"{row['dense']['median']:.2f}×",
                f"{row['full']['median']:.2f}×",
                f"{statistics.median(row['seconds']['captum']):.1f} s, {row['per_eval']} a step",
            ]
            for row in rows
        ],
    )


def families(rows: list[Row]) -> str:
    """Return in words how far scores were from the model's own."""
    used = [row for row in rows if row["incremental"]]
    worst = max(rows, key=lambda row: row["error"])
    full = ", ".join(row["model"] for row in rows if not row["incremental"])
    ending = f"; in full, for a window changes nearly everything there: {full}" if full else ""
    return (
        f"At every position ({rows[0]['window']} / {rows[0]['stride']}) the scores of {len(rows)} networks, one of "
        f"a family of timm's each, were compared with the model's own: the largest difference is {worst['error']:.1e} "
        f"of the largest |logit| ({worst['model']}). Incremental inference was used for {len(used)} of them{ending}.\n"
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
    from matplotlib.ticker import FormatStrFormatter, NullFormatter, NullLocator

    kinds = list(dict.fromkeys(name.rpartition(", ")[2] for name in series))
    figure, axes = plt.subplots(1, len(kinds), figsize=(3.3 * len(kinds), 3.4), layout="constrained", squeeze=False)
    for axis, kind in zip(axes[0], kinds, strict=True):
        for name, row in series.items():
            if name.rpartition(", ")[2] == kind:
                axis.loglog(row["sizes"], row["seconds"], "o-", markersize=4, label=name.rpartition(", ")[0])
        sizes = sorted({size for name, row in series.items() if name.endswith(f", {kind}") for size in row["sizes"]})
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_xticks(sizes, [f"{size:,}" for size in sizes], rotation=45, ha="right", fontsize=8)
        axis.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        axis.yaxis.set_minor_formatter(NullFormatter())
        axis.set_xlabel(kind)
        axis.grid(visible=True, which="both", linewidth=0.3)
        axis.legend(fontsize=8)
    axes[0, 0].set_ylabel("seconds")
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


def gradients(rows: list[Row]) -> str:
    """Return the tables of time and memory of the gradient methods against Captum's."""
    processes = {"time": "of all networks", "time alone": "its own"}
    timed = [row for row in rows if row["figure"] in processes]
    single = [row for row in rows if row["figure"].startswith("one image of ")]
    others = [row for row in rows if row not in timed and row not in single]
    words = {
        "kept": "kept for the way back",
        "peak": "peak of what torch allocates",
        "process": "process above the model",
    }
    first = table(
        ["network", "method", "threads", "process", "time, ours over Captum's", "ours"],
        [
            [
                row["model"],
                row["method"],
                str(row["threads"]),
                processes[row["figure"]],
                ratio(row["ratios"]),
                f"{row['ours']['median']:.2f} s",
            ]
            for row in timed
        ],
    )
    second = table(
        ["network", "method", "bytes", "ours over Captum's", "ours", "Captum's"],
        [
            [
                row["model"],
                row["method"],
                words[row["figure"]],
                f"1/{1 / row['ratio']:.1f}" if row["ratio"] < 0.3 else f"{row['ratio']:.2f}",
                *(f"{middle(row[who]) / 1e6:.0f} MB" for who in ("ours", "captum")),
            ]
            for row in others
        ],
    )
    third = table(
        ["network", "one image of", "method", "threads", "time, ours over Captum's", "ours"],
        [
            [
                row["model"],
                row["figure"].removeprefix("one image of ") + " pixels",
                row["method"],
                str(row["threads"]),
                ratio(row["ratios"]),
                f"{row['ours']['median'] * 1000:.0f} ms",
            ]
            for row in single
        ],
    )
    return (first + "\n" if timed else "") + (third + "\n" if single else "") + second


def middle(value: Any) -> float:
    """Return a figure, or the median of one."""
    return float(value["median"] if isinstance(value, dict) else value)


def peers(cases: dict[str, Row]) -> str:
    """Return the table of the gradient methods side by side."""
    names = ("torch", "captum", "zennit")
    return table(
        ["network, method, threads", "attribkit", *(f"{name} over attribkit" for name in names)],
        [
            [case, f"{row['seconds']['median']:.2f} s", *(ratio(row[name]) if name in row else "" for name in names)]
            for case, row in cases.items()
        ],
    )


def runs(cases: dict[str, Row]) -> str:
    """Return the table of data-set runs."""
    rows = []
    for case, row in cases.items():
        for name, value in row.items():
            rows.append(
                [case, name.replace("_", " "), f"{value['median']:.2f} ({value['min']:.2f}–{value['max']:.2f})"]
            )
    return table(["", "", "median (smallest–largest)"], rows)


def starts(cases: dict[str, Row]) -> str:
    """Return the table of start-up times."""
    return table(["", "CPU seconds"], [[case, f"{row['cpu_seconds']['median']:.2f}"] for case, row in cases.items()])


def section(text: str, name: str, make: Callable[[Row], str]) -> str:
    """Return a section of the page, empty where its benchmark has not been run."""
    return f"\n{text}\n\n{make(read(name))}" if (BENCH / f"{name}.json").exists() else ""


def page() -> str:
    """Return the page."""
    occluded, named = read("occlusion"), read("occlusion-families")["rows"]
    machine = read("startup")["machine"]
    return f"""# Benchmarks

Written by `python docs/make_benchmarks.py` from what `make bench` measured. Every comparison runs both sides in
turns in one process on the same inputs; figures are medians of ratios with the smallest and the largest. Weights
are random, images 224×224. Machine: {occluded["machine"]["processor"]}, 2 cores, no GPU; torch {machine["torch"]},
Python {machine["python"]}. Nothing here has been measured on a GPU yet.

## Occlusion

`python tests/benchmarks/bench_occlusion.py [NETWORK …] --window 32 --stride 16 --threads 1`: all windows, against
`captum.attr.Occlusion` with the best of 1, 16 and 48 perturbations a step. *Bound*: what arithmetic allows, the
multiplications of all maps over those of the changed rectangles. *Dense control*: our kernels with incremental
inference off. *The model itself*: `engine="full"`. What exceeds the bound is owed to folded batch norms, fused
activations, and batches that stay in the caches. *First call*: the first of the process, in which oneDNN
prepares itself and the forward pass is recorded; later calls with the same model and windows spare that.

{occlusion(occluded["rows"])}
{families(named)}
([how it is computed](occlusion.md))
""" + "".join(
        [
            section(PROJECTIONS, "projection", lambda found: projections(found["cases"])),
            section(GRADIENTS, "gradients", lambda found: gradients(found["rows"])),
            section(PEERS, "peers", lambda found: peers(found["cases"])),
            section(RUNS, "runs", lambda found: runs(found["cases"])),
            section(GROWTH, "growth", lambda found: growth(found["series"])),
            section(STARTS, "startup", lambda found: starts(found["cases"])),
        ]
    )


PYTEST = "pytest -s -o python_files='bench_*.py' tests/benchmarks"

PROJECTIONS = f"""## Projections of many units

`{PYTEST}/bench_projection.py`: `attribkit.project` of 64 units against Captum's `NeuronDeconvolution`, one call a
unit."""

GRADIENTS = f"""## Gradient, guided backprop, deconvnet

`{PYTEST}/bench_gradients.py`: against Captum, 8 images at once. *Kept*: the model's own tensors left out. *Peak*:
torch's count, and for attribkit all that is kept besides, which lies in memory maps that torch does not count. Times
depend on what the C library's allocator has been left with: after larger networks it holds on to freed memory, which
Captum gains more by. So they are taken twice: of all networks one after the other in one process, as listed, and of
each in its own. From one run to the next both move further than their ranges tell. The largest ratio of a gradient is
mostly that of the second call, in which attribkit tries [shorter ways](engine.md#a-lean-way-back). Captum's guided
backprop and deconvnet rewrite `ReLU` alone: on MobileNetV2, whose rectifiers are `ReLU6`, they return the gradient to
the bit, in its time. With `ReLU` in its place both libraries do the same work. Single images of 32 and 224 pixels a
side are explained after the large networks, too. Much of their time is Python's, from the third call on
[without the model's code](engine.md#passes-made-again)."""

PEERS = f"""### Side by side

`{PYTEST}/bench_peers.py`: all of them, and bare torch, 4 images at once; above 1, attribkit is faster."""

RUNS = """## Runs over a data set

`python tests/benchmarks/bench_runs.py` ([data sets](data-sets.md))."""

GROWTH = f"""## How cost grows

`{PYTEST}/bench_growth.py`, on ResNet18. The exponent is the slope of log seconds against log size: 1 is linear, below 1
part of the work is shared.

![Seconds against pixels, windows, units and images at once, both axes logarithmic]({PICTURE})"""

STARTS = f"""## Starting

`{PYTEST}/bench_startup.py`, a process each."""


def main() -> None:
    """Write the page."""
    text = page()
    part = DOCS / "benchmarks.md.part"
    part.write_text(text)
    part.replace(DOCS / "benchmarks.md")
    print(DOCS / "benchmarks.md")


if __name__ == "__main__":
    main()
