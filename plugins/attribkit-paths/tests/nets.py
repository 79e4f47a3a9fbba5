"""A small network and images, in float64."""

from __future__ import annotations

import torch
from torch import nn


def net(smooth=False):
    """Return a network; ``smooth``: of tanh in place of ReLU."""
    torch.manual_seed(0)
    act = nn.Tanh if smooth else nn.ReLU
    layers = [nn.Conv2d(3, 6, 3), act(), nn.MaxPool2d(2), nn.Conv2d(6, 6, 3), act(), nn.Flatten(), nn.Linear(24, 4)]
    return nn.Sequential(*layers).double().eval()


def images(count=3, seed=0):
    """Return images [count, 3, 10, 10]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, 10, 10, generator=generator, dtype=torch.float64)


CLASSES = torch.tensor([2, 0, 3])
