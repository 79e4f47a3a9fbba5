"""The parts of a step that torch does not bring: initialisation, filter renormalisation, annealing on a plateau."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attribkit.errors import InputError
from attribkit.models._zfnet import ZFNet
from attribkit.training.recipe import Recipe

__all__ = ["Plateau", "initialise", "renormalise"]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def initialise(model: nn.Module, how: str, spread: float = 1.0) -> None:
    """Draw the weights of convolutions and linear layers anew from torch's generator; biases become 0.

    Parameters
    ----------
    model
        Changed in place.
    how
        ``"paper"``: N(0, 0.01) (§3). ``"scaled"``: the same times √(the paper's fan-in / the layer's), for a smaller or
        larger ZFNet, so that a layer's outputs vary as much as in the paper's network; layers are matched by name.
        ``"he"``: N(0, √(2/fan-in)) (He et al. 2015, eq. 10). ``"model"``: nothing is drawn.
    spread
        The input's standard deviation, for ``"he"``, which presumes 1: the first layer's weights are divided by it.

    Raises
    ------
    InputError
        If ``"scaled"`` is asked of a network that has other layers than ZFNet.
    """
    if how == "model":
        return
    paper = _fan_ins(ZFNet(device="meta")) if how == "scaled" else {}
    for name, module in model.named_modules():
        if not isinstance(module, (*_CONVOLUTIONS, nn.Linear)):
            continue
        fan_in = module.weight[0].numel()
        if how == "scaled" and name not in paper:
            raise InputError(f"init='scaled': ZFNet has no layer {name!r} to scale by; use he or model")
        spreads = {"paper": 0.01, "he": math.sqrt(2 / fan_in) / spread}
        std = spreads[how] if how in spreads else 0.01 * math.sqrt(paper[name] / fan_in)
        spread = 1.0
        nn.init.normal_(module.weight, std=std)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _fan_ins(model: nn.Module) -> dict[str, int]:
    kinds = (*_CONVOLUTIONS, nn.Linear)
    return {name: module.weight[0].numel() for name, module in model.named_modules() if isinstance(module, kinds)}


@torch.no_grad()
def renormalise(model: nn.Module, radius: float) -> None:
    """Scale back every convolution filter whose root mean square exceeds ``radius``, in place (§3).

    A filter is what makes one output map: ``weight[k]``. Others are left bit for bit as they are.
    """
    for module in model.modules():
        if isinstance(module, _CONVOLUTIONS):
            weight: Tensor = module.weight
            rms = weight.square().mean(dim=tuple(range(1, weight.ndim)), keepdim=True).sqrt()
            weight.mul_(torch.where(rms > radius, radius / rms, torch.ones_like(rms)))


@dataclass
class Plateau:
    """The learning rate, annealed when the validation error stops falling.

    Attributes
    ----------
    lr
        The rate of the coming epoch.
    best
        The lowest error so far.
    waited
        Epochs in a row since then.
    """

    lr: float
    best: float = math.inf
    waited: int = 0

    def update(self, error: float, recipe: Recipe) -> bool:
        """Take in an epoch's validation error; return whether training goes on."""
        if error < self.best - recipe.min_delta:
            self.best, self.waited = error, 0
            return True
        self.waited += 1
        if self.waited > recipe.patience:
            self.lr, self.waited = self.lr * recipe.anneal, 0
        return self.lr >= recipe.min_lr

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON keeps it (an infinite best is None)."""
        return {**asdict(self), "best": None if math.isinf(self.best) else self.best}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Plateau:
        """Return what `to_dict` kept."""
        best = math.inf if state["best"] is None else float(state["best"])
        return cls(float(state["lr"]), best, int(state["waited"]))
