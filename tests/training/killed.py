"""Train a small network, slowly enough to be killed in the middle: ``python killed.py DATA OUT``; run by tests."""

import sys
import time

import torch
from nets import recipe, tiny

from attribkit.training import Machine, train


def run(data, out, pause=0.0):
    """Train, waiting after each forward pass."""
    network = tiny()
    network.register_forward_hook(lambda *_: time.sleep(pause))
    asked = recipe(epochs=4, patience=0, anneal=0.5)
    machine = Machine(checkpoint_steps=1)
    return train(
        data, out, asked, network=network, machine=machine, snapshots=(0, 2), say=lambda _: print("alive", flush=True)
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(sys.argv[1], sys.argv[2], 0.02)
