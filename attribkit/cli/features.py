"""``attribkit features``: what do a network's feature maps respond to, over a whole data set?"""

from __future__ import annotations

import click

from attribkit.cli._group import COMMAND_LINE

DEFAULT_OUT = "attribkit-features"


def _channels(ctx: click.Context, param: click.Parameter, value: str) -> str | list[int]:
    """Return ``"all"``, or the numbers in a list like ``0,3,5-9``, each once."""
    if value.strip() == "all":
        return "all"
    found: list[int] = []
    for part in value.split(","):
        low, dash, high = (piece.strip() for piece in part.partition("-"))
        if not low.isdecimal() or (dash and not high.isdecimal()) or (dash and int(high) < int(low)):
            raise click.BadParameter(f"{value!r} is neither all nor a list like 0,3,5-9", ctx, param)
        if dash and int(high) - int(low) > 1_000_000:
            raise click.BadParameter(f"{part.strip()!r} are too many channels", ctx, param)
        found += range(int(low), int(high) + 1) if dash else [int(low)]
    return list(dict.fromkeys(found))


@click.command(
    epilog="The answer lies in the output folder: index.html (open it in a browser), a page and a sheet (LAYER.png) "
    "for each layer, features.json and the crops as .safetensors. Stopped at any moment, the same command goes on from "
    "there; torchrun shares the work among processes."
)
@click.option(
    "--model", metavar="M", help="As for explain: timm/NAME, torchvision/NAME, zfnet, run/DIR or MODULE:FACTORY."
)
@click.option("--weights", metavar="FILE", help="A checkpoint, as for explain.")
@click.option(
    "--data",
    required=True,
    metavar="DATA",
    help="A folder of images or of idx files, fashion-mnist, fashion-sample or torchvision/NAME:ROOT.",
)
@click.option("--split", metavar="PART", help="The part of the data: train, val or test.")
@click.option("--layer", "layers", multiple=True, required=True, metavar="L", help="A layer; may be repeated.")
@click.option("--channels", default="all", show_default=True, callback=_channels, metavar="LIST", help="Like 0,3,5-9.")
@click.option("--top", default=9, show_default=True, type=click.IntRange(1, 100), help="Activations for each map.")
@click.option("--method", default="deconvnet", show_default=True, metavar="M", help="What projects each activation.")
@click.option(
    "--batch-size", default=64, show_default=True, type=click.IntRange(min=1), help="Images loaded at a time."
)
@click.option("--workers", default=0, show_default=True, type=click.IntRange(min=0), help="Processes that load images.")
@click.option("--retry", is_flag=True, help="Try the images again that were left out.")
@click.option("--device", metavar="D", help="Such as cpu or cuda:0.  [default: cuda where there is one, else cpu]")
@click.option("--out", default=DEFAULT_OUT, show_default=True, metavar="DIR", help="The folder to write into.")
@click.pass_context
def features(
    ctx: click.Context,
    model: str | None,
    weights: str | None,
    data: str,
    split: str | None,
    layers: tuple[str, ...],
    channels: str | list[int],
    top: int,
    method: str,
    batch_size: int,
    workers: int,
    retry: bool,
    device: str | None,
    out: str,
) -> None:
    """Show what feature maps respond to: their strongest activations over a data set, projected to pixels.

    Goes through the images once and keeps, for each feature map of each layer, the nine that excite it most. Each is
    projected on its own and shown beside the image patch that caused it, as in Fig. 2 of Zeiler & Fergus.
    """
    import os
    import sys
    from pathlib import Path

    from attribkit.cli._session import Session
    from attribkit.cli._stored import ended_by_sigterm
    from attribkit.datasets import open_images
    from attribkit.features.galleries import gallery
    from attribkit.plugins import manager
    from attribkit.runs.ranks import own_device

    manager().method(method)  # an unknown one is said before anything is loaded
    images = open_images(data, split)
    session = Session(model, weights, device=device)
    session.loaded.model.to(own_device(session.device))
    with ended_by_sigterm():
        mined = gallery(
            session.loaded,
            images,
            layers,
            out,
            channels=channels,
            top=top,
            method=method,
            batch_size=batch_size,
            workers=workers,
            retry=retry,
            command=ctx.find_root().meta[COMMAND_LINE],
            progress=sys.stderr.isatty(),
        )
    if os.environ.get("RANK", "0") != "0":
        return
    used = len(mined.ids) - len(mined.skipped)
    skipped = f", {len(mined.skipped)} left out" if mined.skipped else ""
    maps = sum(len(layer.channels) for layer in mined.layers.values())
    _say_failures([(mined.ids[index], reason) for index, reason in (*mined.skipped, *mined.unshown)])
    click.echo(f"{maps} feature maps over {used} images{skipped}: {Path(out) / 'index.html'}")
    # of several processes the first one alone says that images failed: torchrun ends all when one exits with 1
    if mined.skipped or mined.unshown:
        ctx.exit(1)


def _say_failures(failures: list[tuple[str, str]]) -> None:
    """Say why images were left out: the first one by one, and where there are more, how many for each reason."""
    from collections import Counter

    from attribkit.cli._group import report_failure
    from attribkit.cli._stored import SAID, say_kinds
    from attribkit.errors import ImageError

    # a source's own message begins with the image's name, or its path
    bare = [(name, reason.partition(f"{name}: ")[2] or reason) for name, reason in failures]
    for name, reason in bare[:SAID]:
        report_failure(name, ImageError(f"{name}: {reason}"))
    if len(bare) > SAID:
        say_kinds(Counter(reason for _, reason in bare).most_common(), "features.json")
