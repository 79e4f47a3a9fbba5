"""An attribution in a notebook: its maps side by side, with what was explained and how."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attribkit.report import figures
from attribkit.report.page import environment
from attribkit.report.sections import array, method_title

if TYPE_CHECKING:
    from attribkit.attribution import Attribution

SHOWN = 12
"""At most so many maps are drawn."""


def attribution_html(result: Attribution) -> str:
    """Return an HTML fragment with the signed map of each sample (of each unit, for a projection).

    Parameters
    ----------
    result
        The attribution; of more than `SHOWN` maps the first are drawn.
    """
    values = array(result.values)
    maps = values.reshape(-1, *values.shape[-3:])
    scores = array(result.scores).reshape(-1)
    pictures = [figures.signed_map(one) for one in maps[:SHOWN]]
    template = environment().get_template("notebook.html.j2")
    return template.render(
        title=method_title(result.method),
        captions=[_caption(result, index, len(maps)) for index in range(len(pictures))],
        pictures=pictures,
        scores=[float(score) for score in scores[:SHOWN]],
        more=len(maps) - len(pictures),
        coverage=result.coverage.sentence,
    )


def _caption(result: Attribution, index: int, count: int) -> str:
    target = result.target
    if isinstance(target, tuple):
        return str(target[index % len(target)])
    if hasattr(target, "tolist") and len(target) == count:
        return f"class {int(target[index])}"
    return str(target)
