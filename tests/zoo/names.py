"""Which models there are, and how each is made."""

from __future__ import annotations

import contextlib
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import timm
import torch
from timm.models import model_entrypoint
from torch import nn


def own_names() -> list[str]:
    """Return the names of timm's own models, without those that plugins or other packages have registered.

    One of every family comes first, then a second of every family, and so on: a run that is stopped early has met most.
    """
    names = [name for name in timm.list_models() if model_entrypoint(name).__module__.startswith("timm.")]
    met: Counter[str] = Counter()
    places = {}
    for name in sorted(names, key=lambda name: (len(name), name)):
        places[name] = met[family(name)]
        met[family(name)] += 1
    return sorted(names, key=lambda name: (places[name], name))


def family(name: str) -> str:
    """Return the family of a model: the module of timm that defines it."""
    return model_entrypoint(name).__module__.rpartition(".")[2]


def families() -> list[str]:
    """Return every family of timm's own models."""
    return sorted({family(name) for name in own_names()})


def make(name: str, **options: Any) -> nn.Module:
    """Make a model with random weights, in eval mode, without the warnings some of timm's models make of themselves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return timm.create_model(name, **options).eval()


def make_on_meta(name: str) -> nn.Module:
    """Make a model without its weights."""
    with torch.device("meta"):
        return make(name)


def input_size(model: nn.Module) -> tuple[int, int, int]:
    """Return (channels, height, width) of the model's default configuration."""
    channels, height, width = timm.data.resolve_model_data_config(model)["input_size"]
    return channels, height, width


def parameters(model: nn.Module) -> int:
    """Count the model's parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def smallest(sizes: Iterable[tuple[str, int]]) -> dict[str, str]:
    """Return each family's model with the fewest parameters, from pairs of a name and its number of parameters."""
    found: dict[str, tuple[int, str]] = {}
    for name, size in sizes:
        key = family(name)
        found[key] = min(found.get(key, (size, name)), (size, name))
    return {key: name for key, (_, name) in sorted(found.items())}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Ignore the warnings of models (deprecations inside timm); those of attribkit are raised."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", module="attribkit")
        yield
