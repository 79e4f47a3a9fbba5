"""``attribkit app``: look inside a network, in the browser."""

from __future__ import annotations

import click

from attribkit.cli._group import DEBUG


@click.command(
    epilog="A page can ask for zfnet, zfnet-fashion and any timm/NAME or torchvision/NAME; other models, and "
    "checkpoints, only where they are named here. Ctrl+C ends it."
)
@click.option("--model", "models", multiple=True, metavar="M", help="As for explain; shown first. May be repeated.")
@click.option("--weights", metavar="FILE", help="A checkpoint for the (first) --model.")
@click.option("--checkpoints", metavar="DIR", help="A folder whose checkpoints can be chosen in the page.")
@click.option("--pretrained", is_flag=True, help="Fill timm's and torchvision's models with their published weights, "
              "from the cache or by download.")  # fmt: skip
@click.option("--features", metavar="DIR", help="What `attribkit features` wrote: shows each map's top patches.")
@click.option("--host", default="127.0.0.1", show_default=True, metavar="HOST", help="The address to listen at.")
@click.option("--port", type=click.IntRange(1, 65535), metavar="N", help="[default: the first free one from 7860]")
@click.option("--share", is_flag=True, help="Make a public address too, through gradio's servers.")
@click.option("--open", "browser", is_flag=True, help="Open the page in the browser.")
@click.option("--device", metavar="D", help="Such as cpu or cuda:0.  [default: cuda where there is one, else cpu]")
@click.pass_context
def app(
    ctx: click.Context,
    /,
    models: tuple[str, ...],
    weights: str | None,
    checkpoints: str | None,
    pretrained: bool,
    features: str | None,
    host: str,
    port: int | None,
    share: bool,
    browser: bool,
    device: str | None,
) -> None:
    """Look inside a network in the browser: class maps, feature maps, occlusion.

    The page is served on this machine alone, unless --host or --share says otherwise.
    """
    if weights is not None and not models:
        raise click.UsageError("--weights needs --model: which model are they for?", ctx)
    from attribkit.app.serving import check_address, require_gradio, serve

    require_gradio()  # before torch is imported: that takes seconds
    check_address(host, port)
    from attribkit.app.shelf import Shelf
    from attribkit.app.top import Mined
    from attribkit.cli._session import usable_device

    mined = None if features is None else Mined(features)
    shelf = Shelf(models, weights, checkpoints, pretrained, device=str(usable_device(device)))
    shelf.get(shelf.choices[0])  # a wrong name or checkpoint is said here, and the first page is quick
    serve(
        shelf,
        mined,
        host=host,
        port=port,
        share=share,
        browser=browser,
        debug=bool(ctx.find_root().meta.get(DEBUG)),
        ready=lambda address: click.echo(f"attribkit app: {address} (Ctrl+C ends it)"),
    )
