"""Inspection: every site of a model's forward pass, and what a method would do there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from attribkit.engine.coverage import Coverage, reason
from attribkit.engine.layout import stage_names
from attribkit.engine.sites import Site

#: Kinds that only move or combine values: listed on demand.
_QUIET = frozenset({"flatten", "resample", "concat", "dropout", "mean", "matmul"})


@dataclass(eq=False)
class Inspection:
    """What one forward pass did, site by site. ``str()`` is a table.

    Attributes
    ----------
    model : str
        The model's class.
    sites : list of Site
        In order of execution.
    coverage : Coverage
        What the method would rewrite.
    shapes : dict of str to tuple of int, or None
        Each layer's output shape.
    useful_layers : list of str
        Those worth offering: see `useful_layers`.
    method : str or None
        The method asked about.
    """

    model: str
    sites: list[Site]
    coverage: Coverage
    shapes: dict[str, tuple[int, ...] | None] = field(default_factory=dict)
    useful_layers: list[str] = field(default_factory=list)
    method: str | None = None

    @property
    def layers(self) -> list[str]:
        """Every name a `Unit` can be taken at: module calls and functional sites, in the order of their return."""
        return list(self.shapes)

    def __getitem__(self, name: str) -> Site:
        """Return the site of a name; KeyError where there is none."""
        for site in self.sites:
            if site.name == name:
                return site
        raise KeyError(name)

    def __str__(self) -> str:
        return self.table()

    def __repr__(self) -> str:
        return f"<Inspection of {self.model}: {len(self.sites)} sites>"

    def table(self, *, everything: bool = False) -> str:
        """Return the sites as a table of plain text.

        Parameters
        ----------
        everything
            Whether to list also the sites that only move values (flatten, concatenation, …).
        """
        header, rows, hidden = self.cells(everything=everything)
        lines = [f"{self.model}: {len(self.sites)} sites", "", *_columns([header, *rows])]
        if hidden:
            lines.append(f"({hidden} more that only move values)")
        if self.method is not None:
            lines += ["", self.coverage.sentence]
        return "\n".join(lines)

    def cells(self, *, everything: bool = False) -> tuple[list[str], list[list[str]], int]:
        """Return the table's header, its rows, and how many sites are not listed.

        Parameters
        ----------
        everything
            As for `table`.
        """
        shown = [s for s in self.sites if everything or s.inverse_layer is not None or s.kind not in _QUIET]
        header = ["site", "kind", "operation", "output"]
        rows = [[s.name, s.kind, s.op, _shape(s)] for s in shown]
        if self.method is not None:
            header.append(self.method)
            for row, site in zip(rows, shown, strict=True):
                row.append(self.outcome(site))
        return header, rows, len(self.sites) - len(shown)

    def _repr_html_(self) -> str:
        from attribkit.report.notebook import inspection_html

        return inspection_html(self)

    def outcome(self, site: Site) -> str:
        """Say what the method does at a site."""
        if site.inverse_layer is not None:
            return f"{type(site.inverse_layer).__name__}"
        if not self.coverage.applies:
            return "–"
        why = reason(site, self.method or "the method")
        return f"plain: {why}" if why else "plain"

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return {
            "model": self.model,
            "method": self.method,
            "coverage": self.coverage.to_dict(),
            "layers": list(self.layers),
            "useful_layers": list(self.useful_layers),
            "sites": [
                {
                    "name": s.name,
                    "kind": s.kind,
                    "op": s.op,
                    "input_shape": s.input_shape,
                    "output_shape": s.output_shape,
                    "layout": s.layout,
                    "rewritten": s.rewritten,
                    "outcome": self.outcome(s),
                }
                for s in self.sites
            ],
        }


def useful_layers(model: nn.Module, sites: Sequence[Site], layers: Iterable[str]) -> list[str]:
    """Return the layers worth offering for units, in the order of ``layers``.

    The stages of timm's ``feature_info``; where there are none, convolutions and max pools; where there are hardly any
    of those (transformers), the blocks: modules of one class in a row.
    """
    chosen = stage_names(model)
    if not chosen:
        chosen = frozenset(site.name for site in sites if site.kind in ("conv", "max_pool"))
    if len(chosen) < 3:
        chosen |= {
            f"{path}.{name}" if path else name
            for path, module in model.named_modules()
            if isinstance(module, (nn.ModuleList, nn.Sequential)) and len({type(child) for child in module}) == 1
            for name, _ in module.named_children()
            if len(module) >= 3
        }
    return [layer for layer in layers if layer in chosen]


def _shape(site: Site) -> str:
    return "×".join(map(str, site.output_shape)) if site.output_shape is not None else ""


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [lines[0], "  ".join("─" * width for width in widths), *lines[1:]]
