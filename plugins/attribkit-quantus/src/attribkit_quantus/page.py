"""The report: one self-contained HTML page, everything filled in escaped."""

from __future__ import annotations

import jinja2
from markupsafe import Markup

from attribkit_quantus import figures, tables
from attribkit_quantus.results import CONTROL, Evaluation
from attribkit_quantus.settings import Measure
from attribkit_quantus.verdict import BARELY, LITTLE, PARTLY, verdict


def page(found: Evaluation, command: str = "") -> str:
    """Return the page of an evaluation.

    Parameters
    ----------
    found
        The evaluation.
    command
        The command line that made it, or nothing.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("attribkit_quantus"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    sample = found.samples
    return environment.get_template("evaluation.html.j2").render(
        found=found,
        command=command,
        style=Markup(environment.loader.get_source(environment, "evaluation.css")[0]),  # type: ignore[union-attr]
        verdict=verdict(found),
        words={"barely": BARELY, "little": LITTLE, "partly": PARTLY},
        rows=[_row(found, measure) for measure in found.measures],
        control=CONTROL,
        layers=figures.layers(found) if found.randomised else "",
        curves=figures.curves(found) if found.curves else "",
        grid=figures.picture(sample[""]) if "" in sample else "",
        maps={name: figures.signed(heat) for name, heat in sample.items() if name},
        caption=tables.caption(found),
    )


def _row(found: Evaluation, measure: Measure) -> dict[str, object]:
    intervals = [found.interval(row, measure.name) for row in found.rows]
    counts = sorted({interval.n for interval in intervals if interval is not None})
    return {
        "measure": measure,
        "arrow": tables.ARROWS[measure.better],
        "n": "/".join(map(str, counts)),
        "cells": [(tables.mean(i, measure), tables.ends(i, measure)) for i in intervals],
    }
