"""A model for the kill tests: as small as can be, and slow enough to be killed in the midst of its work."""

import time

import torch
from run_helpers import SIDE, five


class Slow(torch.nn.Sequential):
    pretrained_cfg = {"input_size": (3, SIDE, SIDE), "mean": (0.5,) * 3, "std": (0.5,) * 3, "crop_pct": 1.0}
    seconds = 0.03

    def forward(self, x):
        time.sleep(self.seconds)
        return super().forward(x)


def slow():
    return Slow(*five()).eval()
