"""``attribkit inspect``: what a method would meet inside a model."""

from __future__ import annotations

import json

import click


@click.command("inspect")
@click.option(
    "--model", metavar="M", help="As for explain: timm/NAME, torchvision/NAME, zfnet, run/DIR or MODULE:FACTORY."
)
@click.option("--weights", metavar="FILE", help="A checkpoint, as for explain.")
@click.option("--method", metavar="NAME", help="Say at each site what this method does there.")
@click.option("--layers", "layers_only", is_flag=True, help="List the layers most worth a unit, with their outputs.")
@click.option("--all", "show_all", is_flag=True, help="List also the sites that only move values; with --layers, all.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.option("--device", metavar="D", help="Such as cpu or cuda:0.  [default: cuda where there is one, else cpu]")
def inspect_(
    model: str | None,
    weights: str | None,
    method: str | None,
    layers_only: bool,
    show_all: bool,
    as_json: bool,
    device: str | None,
) -> None:
    """List the sites of a model: its operations, in the order in which they run.

    The names are those that --layer of `attribkit explain` takes; --layers lists only the stages that timm names for
    the model, or its convolutions and pools where it names none. The model runs once, on noise of the size that it was
    made for.
    """
    if layers_only and method is not None:
        raise click.UsageError("--layers lists layers, whatever the method: leave out --method")
    from attribkit.plugins import manager

    if method is not None:
        manager().method(method)  # an unknown one is said before the model is loaded
    import torch

    import attribkit
    from attribkit.cli._session import Session

    session = Session(model, weights, device=device)
    noise = torch.randn(1, *session.loaded.input_size, generator=torch.Generator().manual_seed(0))
    found = attribkit.inspect(session.model, noise.to(session.device), method=method)
    if layers_only:
        layers = found.layers if show_all else found.useful_layers
        shapes = {layer: found.shapes[layer] for layer in layers}
        click.echo(json.dumps({"model": found.model, "layers": shapes}, indent=2) if as_json else _columns(shapes))
    elif as_json:
        click.echo(json.dumps(found.to_dict(), indent=2))
    else:
        click.echo(found.table(everything=show_all))


def _columns(shapes: dict[str, tuple[int, ...] | None]) -> str:
    width = max(map(len, shapes), default=0)
    return "\n".join(f"{name:<{width}}  {'×'.join(map(str, shape or ()))}".rstrip() for name, shape in shapes.items())
