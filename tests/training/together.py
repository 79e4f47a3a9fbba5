"""Train in as many processes as torchrun's variables say: ``python together.py DATA OUT``; run by tests."""

import sys

import torch
from nets import recipe, tiny

from attribkit.training import Machine, train


def run(data, out):
    """Train without dropout; with 43 images the last batch has one, fewer than there are processes."""
    asked = recipe(epochs=2, batch_size=7)
    return train(
        data, out, asked, network=tiny(drop=0.0), machine=Machine(device=torch.device("cpu"), checkpoint_steps=4)
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(sys.argv[1], sys.argv[2])
