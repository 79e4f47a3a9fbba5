"""Small models for the command line's tests, loaded as ``tinynets:NAME``."""

import torch
from torch import nn

CONFIG = {"input_size": (3, 24, 24), "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "crop_pct": 1.0}


def _seeded(*layers):
    net = nn.Sequential(*layers)
    generator = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    net.pretrained_cfg = CONFIG
    return net


def five():
    """Five classes, with a rectifier and a max pool."""
    return _seeded(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4), nn.Flatten(), nn.Linear(4 * 36, 5))


def smooth():
    """No rectifier at all."""
    return _seeded(nn.Conv2d(3, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(2 * 22 * 22, 5))


class Raising(nn.Module):
    pretrained_cfg = CONFIG

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        raise LookupError("no such\nshelf")


class DarkIsFatal(nn.Module):
    """Raises on dark images."""

    pretrained_cfg = CONFIG

    def __init__(self):
        super().__init__()
        self.net = five()

    def forward(self, x):
        if x.mean() < -0.8:
            raise ValueError("too dark")
        return self.net(x)


class Dense(nn.Module):
    pretrained_cfg = CONFIG

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3)

    def forward(self, x):
        return self.conv(x)


class NotANumber(nn.Module):
    pretrained_cfg = CONFIG

    def __init__(self):
        super().__init__()
        self.net = five()

    def forward(self, x):
        return self.net(x) * float("nan")


class Interrupted(nn.Module):
    pretrained_cfg = CONFIG

    def __init__(self):
        super().__init__()
        self.net = five()

    def forward(self, x):
        raise KeyboardInterrupt


def not_a_model():
    return 7
