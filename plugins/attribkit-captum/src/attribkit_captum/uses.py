"""A module that a network calls several times, as several modules: Captum's DeepLIFT and LRP want each called once."""

from __future__ import annotations

import copy
from collections import Counter

import torch
from torch import nn


class Uses(nn.Module):
    """Stands in for a module: the i-th call in a forward pass goes to the i-th of its copies, which share its weights.

    Parameters
    ----------
    module
        The module.
    count
        How many times a forward pass calls it.
    """

    def __init__(self, module: nn.Module, count: int) -> None:
        super().__init__()
        memo = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
        self.uses = nn.ModuleList([module, *(copy.deepcopy(module, dict(memo)) for _ in range(count - 1))])
        self.upcoming = 0
        self.train(module.training)

    def forward(self, *args, **kwargs):
        """Call the copy whose turn it is."""
        use = self.uses[self.upcoming % len(self.uses)]
        self.upcoming += 1
        return use(*args, **kwargs)

    def __getattr__(self, name):
        """Return what the module itself would, for code that looks at its settings."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("uses")[0], name)


def told_apart(scores: nn.Module, x: torch.Tensor, index: torch.Tensor) -> None:
    """Put a `Uses` in the place of each module without children that a forward pass calls several times.

    Parameters
    ----------
    scores
        The network; it is changed. From then on each of its forward passes begins with the first uses.
    x, index
        What it is called with to see.
    """
    calls: Counter[nn.Module] = Counter()
    leaves = {module for module in scores.modules() if not list(module.children())}
    handles = [leaf.register_forward_pre_hook(lambda module, args: calls.update([module])) for leaf in leaves]
    try:
        with torch.no_grad():
            scores(x, index)
    finally:
        for handle in handles:
            handle.remove()
    stand_ins = {module: Uses(module, count) for module, count in calls.items() if count > 1}
    if not stand_ins:
        return
    for parent in list(scores.modules()):
        for name, child in parent._modules.items():  # not named_children(): it names a module once only
            if child in stand_ins:
                parent._modules[name] = stand_ins[child]

    def begin(module, args):
        for each in stand_ins.values():
            each.upcoming = 0

    scores.register_forward_pre_hook(begin)
