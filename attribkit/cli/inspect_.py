"""``attribkit inspect``: what a method would meet inside a model."""

from __future__ import annotations

import click


@click.command("inspect")
@click.option("--model", metavar="M", help="As for explain: timm/NAME, torchvision/NAME, zfnet or MODULE:FACTORY.")
@click.option("--weights", metavar="FILE", help="A checkpoint, as for explain.")
@click.option("--method", metavar="NAME", help="Say at each site what this method does there.")
@click.option("--all", "show_all", is_flag=True, help="List also the sites that only move values.")
@click.option("--device", metavar="D", help="Such as cpu or cuda:0.  [default: cuda where there is one, else cpu]")
def inspect_(model: str | None, weights: str | None, method: str | None, show_all: bool, device: str | None) -> None:
    """List the sites of a model: its operations, in the order in which they run.

    The names are those that --layer of `attribkit explain` takes. The model runs once, on noise of the size that it
    was made for.
    """
    from attribkit.plugins import manager

    if method is not None:
        manager().method(method)  # an unknown one is said before the model is loaded
    import torch

    import attribkit
    from attribkit.cli._session import Session

    session = Session(model, weights, device=device)
    noise = torch.randn(1, *session.loaded.input_size, generator=torch.Generator().manual_seed(0))
    found = attribkit.inspect(session.model, noise.to(session.device), method=method)
    click.echo(found.table(everything=True) if show_all else str(found))
