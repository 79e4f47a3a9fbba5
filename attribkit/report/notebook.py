"""What results show of themselves in a notebook: HTML without scripts, widgets or style sheets.

A stored notebook is read in many places, and some of them drop every style: what must be read stands in tables, and
colour scales are pictures. Colours of text are the notebook's own, so that dark themes work.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attribkit.report import figures
from attribkit.report.page import environment
from attribkit.report.sections import array, method_title

if TYPE_CHECKING:
    from attribkit.api import MethodInfo
    from attribkit.attribution import Attribution
    from attribkit.engine.coverage import Coverage
    from attribkit.engine.inspection import Inspection
    from attribkit.models.building import LoadedModel
    from attribkit.store.records import Record

SHOWN = 12
"""At most so many maps are drawn."""

SIDES = ((3, 224), (6, 160), (SHOWN, 112))
"""Of up to so many maps, how large each is drawn, in pixels."""

SITES = 200
"""At most so many sites are listed."""


def attribution_html(result: Attribution) -> str:
    """Return the signed map of each sample with its target, its score and its colour scale, as HTML.

    A projection is a grid: a row for each sample, a column for each unit.

    Parameters
    ----------
    result
        The attribution; of more than `SHOWN` maps the first are drawn.
    """
    values, scores = array(result.values), array(result.scores)
    grid = values.ndim == 5
    columns = values.shape[1] if grid else 1
    wide = min(columns, SHOWN)
    rows = min(len(values), max(1, SHOWN // wide))
    side = next((side for count, side in SIDES if rows * wide <= count), SIDES[-1][1])
    cells = []
    for row in range(rows):
        for column in range(wide):
            place = (row, column) if grid else (row,)
            caption = _caption(result, row, column)
            cells.append((caption, float(scores[place]), figures.signed_map(values[place], side)))
    across = wide if grid else max(1, min(rows, 700 // side))
    return _render(
        "notebook.html.j2",
        title=method_title(result.method),
        coverage=result.coverage.sentence,
        rows=[cells[start : start + across] for start in range(0, len(cells), across)],
        grid=grid,
        side=side,
        bar=figures.colour_bar("signed"),
        more=len(values) * columns - len(cells),
    )


def _caption(result: Attribution, row: int, column: int) -> str:
    target = result.target
    if isinstance(target, tuple):
        return str(target[column])
    if hasattr(target, "tolist"):
        return f"class {int(target.reshape(-1)[row])}"
    return str(target)


def record_html(record: Record) -> str:
    """Return what a store holds of one image and one method: the map, or why there is none, as HTML."""
    target = f"class {record.target}" if isinstance(record.target, int) else str(record.target or "")
    values = record.values
    if values is None:
        return _tables(
            record.image, [], [f"{method_title(record.method)} failed: {record.error or 'no reason is kept'}"]
        )
    side = SIDES[0][1]
    return _render(
        "notebook.html.j2",
        title=record.image,
        coverage=method_title(record.method),
        rows=[[(target, record.score, figures.signed_map(array(values), side))]],
        grid=False,
        side=side,
        bar=figures.colour_bar("signed"),
        more=0,
    )


def coverage_html(coverage: Coverage) -> str:
    """Return a table of what was rewritten, kind by kind, and what was left, as HTML."""
    kinds = [(kind.replace("_", " "), done, total) for kind, (done, total) in coverage.kinds.items()]
    header = ["operation", "in the network", f"rewritten by {coverage.method}"]
    rows = [[kind, total, done or "–"] for kind, done, total in kinds] if coverage.applies else []
    left = [[name, reason] for name, reason in coverage.left]
    tables: list[dict[str, Any]] = [{"header": header, "rows": rows, "numbers": (1, 2)}] if rows else []
    if left:
        header = ["kept the ordinary derivative", "because"]
        tables.append({"header": header, "rows": left[:SITES], "numbers": (), "more": len(left) - SITES})
    return _tables(coverage.sentence, tables)


def inspection_html(inspection: Inspection) -> str:
    """Return the table of the sites, as HTML: those that `str()` lists, the first `SITES` of them."""
    header, rows, hidden = inspection.cells()
    more = max(0, len(rows) - SITES)
    notes = [f"{hidden} more that only move values"] if hidden else []
    notes += [inspection.coverage.sentence] if inspection.method is not None else []
    table = {"header": header, "rows": rows[:SITES], "numbers": (), "more": more}
    return _tables(f"{inspection.model}: {len(inspection.sites)} sites", [table], notes)


def model_html(loaded: LoadedModel) -> str:
    """Return what a loaded model is, in a few rows of HTML."""
    parameters = sum(parameter.numel() for parameter in loaded.model.parameters())
    labels = loaded.labels
    rows = [
        ["network", f"{type(loaded.model).__name__}, {parameters:,} parameters"],
        ["weights", loaded.weights or "unknown"],
        ["input", "×".join(map(str, loaded.input_size))],
        ["preprocessing", loaded.preprocessing or "–"],
        ["classes", f"{len(labels)}: {', '.join(labels[:3])}, …" if labels else "no names known"],
    ]
    return _tables(loaded.name, [{"rows": rows, "numbers": ()}])


def method_html(info: MethodInfo) -> str:
    """Return what is known of a method, in a few rows of HTML; its options where it can be loaded."""
    rows = [["published", info.source or "–"], ["comes with", f"{info.distribution} {info.version}"]]
    try:
        options = ", ".join(f"{name}={value!r}" for name, value in info.options.items())
    except Exception as error:  # a plugin that cannot be imported is no reason to show nothing
        options = f"not known: {error}"
    rows.append(["options", options or "none"])
    return _tables(f"{info.name}: {info.summary}", [{"rows": rows, "numbers": ()}])


def progress_html(bars: list[tuple[str, int, int | None]]) -> str:
    """Return progress bars, each from its description, how much is done, and of how much (None: not known)."""
    return _render("notebook_progress.html.j2", bars=bars)


def _tables(title: str, tables: list[dict[str, Any]], notes: list[str] | None = None) -> str:
    return _render("notebook_tables.html.j2", title=title, tables=tables, notes=notes or [])


def _render(template: str, **values: Any) -> str:
    return environment().get_template(template).render(**values)
