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


def full_once():
    """Let the disk be full for the second process at its second shard, once (the file ``full`` says that it was).

    Started again, the second process comes first: what it finds of the first one is where that was before it died.
    """
    import errno
    import os
    from pathlib import Path

    from attribkit.runs import loop

    original, calls = loop.write_shard, []

    def write_shard(*args):
        calls.append(0)
        if os.environ.get("RANK") == "1" and len(calls) == 2 and not Path("full").exists():
            Path("full").touch()
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(*args)

    loop.write_shard = write_shard
    if Path("full").exists():
        if os.environ["RANK"] == "1":
            Path("early").touch()
        else:
            while not Path("early").exists():
                time.sleep(0.02)
            time.sleep(1.0)
    return slow()
