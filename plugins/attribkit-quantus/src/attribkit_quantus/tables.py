"""The table: on the terminal and as Markdown."""

from __future__ import annotations

from rich.table import Table

from attribkit_quantus.results import Evaluation
from attribkit_quantus.settings import Measure
from attribkit_quantus.statistics import Interval
from attribkit_quantus.verdict import number

ARROWS = {"lower": "↓", "higher": "↑", "": ""}


def digits(measure: Measure) -> int:
    """Return how many digits after the point a measure is shown with."""
    return 4 if measure.name == "seconds" else 2


def mean(interval: Interval | None, measure: Measure) -> str:
    """Return a mean as it stands in a table."""
    return "" if interval is None else number(interval.mean, digits(measure))


def ends(interval: Interval | None, measure: Measure) -> str:
    """Return an interval's ends as they stand in a table; nothing where there are none."""
    if interval is None or interval.low != interval.low:
        return ""
    return f"{number(interval.low, digits(measure))}…{number(interval.high, digits(measure))}"


def terminal(found: Evaluation) -> Table:
    """Return the table for a terminal: measures down, methods across, so that it stays narrow."""
    table = Table(title=f"{found.model} on {found.data}", caption=caption(found))
    table.add_column("measure")
    table.add_column("n", justify="right")
    for row in found.rows:
        table.add_column(row, justify="right")
    for measure in found.measures:
        intervals = [found.interval(row, measure.name) for row in found.rows]
        counts = sorted({interval.n for interval in intervals if interval is not None})
        cells = [f"{mean(i, measure)}\n{ends(i, measure)}".rstrip() for i in intervals]
        table.add_row(f"{measure.title} {ARROWS[measure.better]}", "/".join(map(str, counts)), *cells)
    return table


def markdown(found: Evaluation) -> str:
    """Return the table as Markdown."""
    lines = [_line("measure", "n", *(f"`{row}`" if row in found.methods else row for row in found.rows))]
    lines.append(_line("---", *["---:"] * (len(found.rows) + 1)))
    for measure in found.measures:
        intervals = [found.interval(row, measure.name) for row in found.rows]
        counts = sorted({interval.n for interval in intervals if interval is not None})
        cells = [f"{mean(i, measure)}<br>{ends(i, measure)}".removesuffix("<br>") for i in intervals]
        lines.append(_line(f"{measure.title} {ARROWS[measure.better]}", "/".join(map(str, counts)), *cells))
    return "\n".join(lines)


def layers(found: Evaluation) -> str:
    """Return how alike the maps stay, depth by depth, as Markdown."""
    if found.cascade is None:
        return ""
    names = list(found.randomised)
    lines = [
        _line("random down to", "same class", *(f"`{name}`" for name in names)),
        _line("---", *["---:"] * (len(names) + 1)),
    ]
    along = {name: found.along(name) for name in names}
    for index, (depth, same) in enumerate(zip(found.cascade.depths, found.same_class, strict=True)):
        cells = [f"{number(along[n][0][index].mean)} / {number(along[n][1][index].mean)}" for n in names]
        lines.append(_line(f"`{depth.layer}`", f"{same:.0%}", *cells))
    return "\n".join(lines)


def caption(found: Evaluation) -> str:
    """Return what the numbers are."""
    level = found.settings.level
    return f"Means over n images with {level:.0%} bootstrap intervals; ↓ lower is better, ↑ higher is better."


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
