"""Networks and images small enough for every algorithm, in float64."""

from __future__ import annotations

import torch
from torch import nn

CLASSES = torch.tensor([2, 0, 3])


def net():
    """Return a network of modules that each are called once, for images [N, 3, 12, 12]."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 5, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(2)]
    made = nn.Sequential(*layers, nn.Flatten(), nn.Linear(20, 4)).double().eval()
    made[-1].weight.data *= 20  # Captum's Lime returns zeros where scores differ by little
    return made


class Residual(nn.Module):
    """A network that calls one ReLU three times."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(6, 4)
        self.double().eval()

    def forward(self, x):
        x = self.relu(self.conv1(x))
        x = self.relu(self.conv2(x) + x)
        return self.head(self.relu(x - 0.1).mean((2, 3)))


def images(count=3, seed=0):
    """Return images [count, 3, 12, 12]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, 12, 12, generator=generator, dtype=torch.float64)
