"""Model-parameter randomisation (Adebayo et al. 2018): layers lose what they learned, from the last one down."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attribkit.errors import ModelError


@dataclass(frozen=True)
class Depth:
    """How far down the layers are random.

    Attributes
    ----------
    layer
        The last one that was reset: it and every layer used after it are random.
    count
        How many layers that is.
    """

    layer: str
    count: int


@dataclass(frozen=True)
class Cascade:
    """The depths at which a network is looked at while its layers are reset, the last one used first.

    Attributes
    ----------
    layers
        The layers that can be reset, the last one used first.
    depths
        Where to stop and look; the last one is the whole network.
    kept
        The share of the parameters that belong to no such layer and stay as they were learned.
    """

    layers: tuple[str, ...]
    depths: tuple[Depth, ...]
    kept: float

    @property
    def upper(self) -> int:
        """Index of the depth that is nearest to a third of the layers: what is called the upper layers."""
        third = len(self.layers) / 3
        return min(range(len(self.depths)), key=lambda i: (abs(self.depths[i].count - third), self.depths[i].count))


def plan(model: nn.Module, inputs: Tensor, depths: int) -> Cascade:
    """Return which layers are reset in which order.

    A layer is a module with parameters of its own and torch's ``reset_parameters``. The order is that of use on
    ``inputs``; a layer whose parent uses its weights without calling it counts as used with the parent. One that is
    not seen in use is left alone.

    Raises
    ------
    ModelError
        No layer can be reset, or the model cannot be copied.
    """
    shadow = copied(model)
    called: dict[str, int] = {}

    def note(name: str) -> None:
        called.setdefault(name, len(called))

    for name, module in shadow.named_modules():
        module.register_forward_hook(lambda module, inputs, output, name=name: note(name))
    with torch.no_grad():
        shadow(inputs)
    found = [name for name, module in model.named_modules() if _resettable(module)]
    used = {name: called[place] for name in found if (place := _caller(name, called)) is not None}
    layers = sorted(used, key=lambda name: used[name], reverse=True)
    if not layers:
        raise ModelError("no layer of the model has a reset_parameters of its own: there is nothing to randomise")
    count = min(depths, len(layers))
    ends = [-(-len(layers) * step // count) for step in range(1, count + 1)]
    reset = {id(p) for name in layers for p in model.get_submodule(name).parameters(recurse=False)}
    sizes = {id(p): p.numel() for p in model.parameters()}
    kept = sum(size for key, size in sizes.items() if key not in reset) / max(1, sum(sizes.values()))
    return Cascade(tuple(layers), tuple(Depth(layers[end - 1], end) for end in ends), kept)


def randomised(model: nn.Module, cascade: Cascade, seed: int) -> Iterator[tuple[Depth, nn.Module]]:
    """Give the network at each depth: one copy, in which more and more layers are reset by their own initialisation.

    Parameters
    ----------
    model
        The network; neither it nor torch's random generators change.
    cascade
        What `plan` returned for it.
    seed
        Of the new weights: the same seed gives the same ones.
    """
    shadow = copied(model)
    done = 0
    for depth in cascade.depths:
        for index in range(done, depth.count):
            with own_random_state(seed + index, shadow):
                layer: Any = shadow.get_submodule(cascade.layers[index])
                layer.reset_parameters()
        done = depth.count
        yield depth, shadow


def copied(model: nn.Module) -> nn.Module:
    """Return a deep copy of a model, in eval mode."""
    try:
        return copy.deepcopy(model).eval()
    except Exception as error:
        raise ModelError(f"the model cannot be copied, and is never changed itself: {error}") from error


@contextmanager
def own_random_state(seed: int, model: nn.Module) -> Iterator[None]:
    """Seed torch's generators for a while, those of the CPU and of the model's CUDA devices."""
    devices = {tensor.device for tensor in model.parameters() if tensor.is_cuda}
    with torch.random.fork_rng(devices=[device.index for device in devices]):
        torch.manual_seed(seed)
        yield


def _resettable(module: nn.Module) -> bool:
    own = next(module.parameters(recurse=False), None)
    return own is not None and callable(getattr(module, "reset_parameters", None))


def _caller(name: str, called: dict[str, int]) -> str | None:
    """Return the layer itself if it was called, else the innermost module around it that was.

    None where only the whole model was: nothing shows that the layer is used at all.
    """
    if not name:
        return name
    if not name:
        return name  # a model that is a single layer
    while name and name not in called:
        name = name.rpartition(".")[0]
    return name or None
