"""How fast a training step is, and what prepares its batch: ``python tests/training/bench_step.py [THREADS]``.

ZFNet of a quarter of the width at 112×112, 128 images a step, on the CPU: images a second, the best of three.
"""

import sys
import time

import numpy as np
import torch
import torch.nn.functional as F

from attribkit.datasets import First, open_images
from attribkit.models import zfnet
from attribkit.training.memory import keep_freed_memory
from attribkit.training.pixels import Augmentation, Pixels

BATCH = 128


def rate(call, repeats=6):
    """Return images a second."""
    best = 0.0
    for _ in range(3):
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        best = max(best, BATCH * repeats / (time.perf_counter() - start))
    return best


def stepper(channels_last):
    torch.manual_seed(0)
    net = zfnet(10, in_chans=1, img_size=112, width=0.25)
    inputs, classes = torch.randn(BATCH, 1, 112, 112) * 60, torch.randint(0, 10, (BATCH,))
    if channels_last:
        net, inputs = net.to(memory_format=torch.channels_last), inputs.contiguous(memory_format=torch.channels_last)
    optimiser = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)

    def step():
        optimiser.zero_grad()
        F.cross_entropy(net(inputs), classes).backward()
        optimiser.step()

    step()
    return step


def main(threads):
    torch.set_num_threads(threads)
    source = First(open_images("fashion-sample"), 1000)
    pixels, augment = Pixels(source, np.arange(1000), 128, 1), Augmentation(1000, 16, True, 0, 1)
    rows = np.arange(BATCH)
    print(f"{threads} thread(s), images a second")
    print(
        f"  preparing a batch                      {rate(lambda: augment(pixels.take(rows), rows, 112).float()):8.0f}"
    )
    for kept in (False, True):
        if kept and not keep_freed_memory():
            print("  this C library cannot be told to keep freed memory")
            return
        for channels_last in (False, True):
            name = f"{'freed memory kept' if kept else 'as malloc is'}, {'channels last' if channels_last else 'plain'}"
            print(f"  a step: {name:<30} {rate(stepper(channels_last)):8.0f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
