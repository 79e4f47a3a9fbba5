"""``attribkit diagnose``: the filters of a model's first convolution (paper §4.1)."""

from __future__ import annotations

from typing import Any

import click

from attribkit.cli._paper import data_options, model_options, open_session, progress_shown, source_inputs, write


@click.command()
@data_options(required=False, help="Images to look for dead filters with: a folder, fashion-sample, …")
@model_options("attribkit-diagnosis")
def diagnose(data: str | None, split: str | None, limit: int | None, out: str, **options: Any) -> None:
    """Examine a model's first convolution: dead and dominating filters, frequencies, aliasing.

    Without --data the weights alone are looked at.
    """
    import torch

    from attribkit.features import diagnose

    if data is None and (split is not None or limit is not None):
        raise click.UsageError("--split and --limit belong to --data")
    session = open_session(options)
    images: Any = torch.zeros(1, *session.loaded.input_size, device=session.device)
    if data is not None:
        images = source_inputs(session, data, split, limit)
    with progress_shown():
        found = diagnose(session.model, images, active=data is not None)
    write(out, {"diagnosis": (found, found.plot())}, found.verdict())
