"""``attribkit occlusion-study``: one image under a sliding square (paper Fig. 6)."""

from __future__ import annotations

from typing import Any

import click

from attribkit.cli._paper import data_options, model_options, open_session, progress_shown, sized, source_inputs, write


@click.command("occlusion-study")
@click.argument("image", metavar="IMAGE")
@data_options(required=False, help="Other images, to project the same map from: a folder, fashion-sample, …")
@click.option("--target", default="auto", show_default=True, metavar="CLASS|auto", help="The class: its index or name.")
@click.option("--layer", metavar="L", help="The feature map's layer.  [default: the top layer with maps]")
@click.option("--channel", type=click.IntRange(min=0), metavar="C", help="The feature map.  [default: the most active]")
@click.option("--window", type=click.IntRange(min=1), metavar="PX", help="The square's side.  [default: 1/7]")
@click.option("--stride", type=click.IntRange(min=1), metavar="PX", help="Its step.  [default: half the window]")
@click.option("--fill", default=0.0, show_default=True, metavar="V", help="Its value after normalisation.")
@click.option("--keep", default=3, show_default=True, type=click.IntRange(min=0), metavar="N", help="Other images.")
@click.option("--labels", metavar="FILE", help="Names of the classes, one a line.")
@model_options("attribkit-occlusion")
def occlusion_study(
    image: str,
    data: str | None,
    split: str | None,
    limit: int | None,
    target: str,
    layer: str | None,
    channel: int | None,
    window: int | None,
    stride: int | None,
    fill: float,
    keep: int,
    labels: str | None,
    out: str,
    **options: Any,
) -> None:
    """Slide a grey square over IMAGE: what happens to a feature map, to the class, to the answer.

    IMAGE is a file, or ID of an image in --data where no file is called so.
    """
    import os

    from attribkit.cli._paper import chosen
    from attribkit.cli._session import Session
    from attribkit.datasets import open_images
    from attribkit.features import occlusion_study
    from attribkit.images import read_image

    if data is not None and not os.path.exists(image):
        source = open_images(data, split)
        photograph = source.load(chosen(source, [image], 1)[0])
    else:
        photograph = read_image(image)
    session = (
        Session(options["model"], options["weights"], labels, options["device"]) if labels else open_session(options)
    )
    others = source_inputs(session, data, split, limit) if data is not None else None
    names = session.labels
    if names is None and data is not None:
        names = sized(session, open_images(data, split))
    with progress_shown():
        found = occlusion_study(
            session.model,
            session.inputs(photograph),
            session.class_target(target),
            layer=layer,
            channel=channel,
            others=others,
            keep=keep,
            window=window,
            stride=stride,
            fill=fill,
            labels=names,
        )
    lowest = divmod(int(found.probability.argmin()), found.probability.shape[1])
    say = [
        f"{found.name(found.target)}: probability {found.clean_probability:.3g}, at worst"
        f" {found.probability[lowest]:.3g} with the square at {found.windows[lowest][:2].tolist()} (top, left)",
        f"map {found.channel} of {found.layer}: activity {found.clean_activity:.3g}, least {found.activity.min():.3g}",
    ]
    write(out, {"occlusion-study": (found, found.plot(session.loaded.denormalize))}, say)
