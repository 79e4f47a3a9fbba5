"""``attribkit evolution``: feature maps through training (paper Fig. 4)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from attribkit.cli._paper import data_options, model_options, open_session, progress_shown, source_inputs, write


@click.command()
@click.argument("snapshots", nargs=-1, required=True, metavar="RUN|FILE...")
@data_options(required=True, help="Images: a folder, fashion-mnist, fashion-sample or torchvision/NAME:ROOT.")
@click.option("--layer", "layers", multiple=True, required=True, metavar="L", help="A layer; may be repeated.")
@click.option(
    "--channel",
    "channels",
    multiple=True,
    type=click.IntRange(min=0),
    metavar="C",
    help="A map; may be repeated.  [default: the first 6]",
)
@click.option("--method", default="deconvnet", show_default=True, metavar="NAME", help="The method that projects.")
@model_options("attribkit-evolution")
def evolution(
    snapshots: tuple[str, ...],
    data: str,
    split: str | None,
    limit: int | None,
    layers: tuple[str, ...],
    channels: tuple[int, ...],
    method: str,
    out: str,
    **options: Any,
) -> None:
    """Follow feature maps through training: each map's strongest activation, projected, at every snapshot.

    RUN is a folder that `attribkit train --snapshots` wrote; FILEs are checkpoints whose names end in their epoch.
    Without --model the model is the run's own.
    """
    from attribkit.features import evolution, find_snapshots
    from attribkit.features.draw._base import slug

    files = find_snapshots(snapshots)
    if options["model"] is None:
        options["model"] = _own_model(snapshots[0])
    # the first snapshot builds the network, with as many classes as it has
    options["weights"] = options["weights"] or str(next(iter(files.values())))
    session = open_session(options)
    images = source_inputs(session, data, split, limit)
    results: dict[str, tuple[Any, Any]] = {}
    lines = []
    with progress_shown():
        for layer in layers:
            wanted = channels or range(min(6, _count(session, layer)))
            found = evolution(files, images, layer, wanted, model=session.loaded, method=method)
            results[f"evolution-{slug(layer)}"] = (found, found.plot())
            settled = ", ".join(f"{c}: {epoch}" for c, epoch in zip(found.channels, found.settled, strict=True))
            lines.append(
                f"{layer}: {int(found.jumps.sum())} jumps; the image stays the same from epoch (map: epoch) {settled}"
            )
    write(out, results, lines)


def _own_model(given: str) -> str | None:
    """Return the model of the run that a folder or a snapshot is of; None where a file is of none.

    Raises
    ------
    InputError
        If the folder is of no finished run.
    """
    from attribkit.errors import InputError
    from attribkit.training.runs import is_run

    path = Path(given)
    folder = path if path.is_dir() else path.parent
    if folder.name == "snapshots" and not is_run(str(folder)):
        folder = folder.parent
    if is_run(str(folder)):
        return f"run/{folder}"
    if path.is_dir():
        raise InputError(
            f"{given}: holds no finished run to take the model from (weights.safetensors and run.json); give --model"
        )
    return None


def _count(session: Any, layer: str) -> int:
    """Return how many maps a layer has."""
    import torch

    from attribkit.engine.state import pristine
    from attribkit.errors import InputError
    from attribkit.features._observe import look

    noise = torch.zeros(1, *session.loaded.input_size, device=session.device)
    with pristine(session.model, noise):
        seen = look(session.model, noise, [layer])
    layout = seen.layouts[layer]
    if layout is None:
        raise InputError(f"layer {layer!r}: its feature dimension is not known")
    return int(seen.values[layer].shape[layout.index("C")])
