"""Small networks and images."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

CLASSES = np.array([2, 0, 3])


def net(channels=3, size=16, classes=4):
    """Return a network with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        side = (size - 2) // 2 - 2
        return nn.Sequential(
            nn.Conv2d(channels, 4, 3),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(4, 6, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(6 * side * side, classes),
        ).eval()


def images(count=3, channels=3, size=16, seed=0, dtype=np.float32):
    """Return images [count, channels, size, size]."""
    return np.random.default_rng(seed).normal(size=(count, channels, size, size)).astype(dtype)


class Wide(nn.Module):
    """Returns what no classifier returns: a score a pixel."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, padding=1)

    def forward(self, x):
        return self.conv(x)


def wide():
    """Return a network without class scores."""
    return Wide()
