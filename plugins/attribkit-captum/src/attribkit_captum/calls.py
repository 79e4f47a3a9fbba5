"""What a call of Captum needs around it: a model of its own, a score to explain, quiet, and draws that repeat."""

from __future__ import annotations

import copy
import random
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from attribkit.errors import ModelError

#: What Captum says on every call, or says of what the plugin does on purpose.
NOISE = (
    r"\s*Setting (forward, )?backward hooks ",
    r"\s*Input Tensor \d+ did not already require gradients",
)

_alone = threading.RLock()


class Scores(nn.Module):
    """A network whose output [B] is the target's score of each row.

    Captum repeats, repeats in blocks or cuts up a batch as it needs; ``index``, passed as its additional argument, goes
    the same way and says which of the caller's samples each row belongs to.

    Parameters
    ----------
    model, target
        As for `attribkit.Method.attribute`.
    entrance
        Whether the image goes through a module of its own first, ``image``, where a layer can be looked at.
    """

    def __init__(self, model, target, entrance=False):
        super().__init__()
        self.model = model
        self.target = target
        self.image = nn.Identity() if entrance else None

    def forward(self, x, index):
        """Return the scores [B] of rows [B, C, H, W]; ``index`` is a LongTensor [B]."""
        return self.target.scores(self.model, x if self.image is None else self.image(x), index)


def twin(model: nn.Module, own_weights: bool) -> nn.Module:
    """Return a copy of a model for Captum to hang its hooks on and leave things in.

    Parameters
    ----------
    model
        The caller's.
    own_weights
        Whether the weights are copied too; else both share them.

    Raises
    ------
    ModelError
        Something in the model cannot be copied.
    """
    memo = {} if own_weights else {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"Captum needs a copy of the model, and {type(model).__name__} has none: {reason}") from error


@contextmanager
def calm(device: torch.device) -> Iterator[None]:
    """Silence `NOISE`, and put the random generators back at the end; one call at a time, since both are global."""
    with _alone, warnings.catch_warnings():
        for message in NOISE:
            warnings.filterwarnings("ignore", message=message)
        python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002  Captum draws from the global one
        try:
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


def begin_draws(seed: int, device: torch.device) -> None:
    """Seed every generator that Captum may draw from."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


def convolution(listing, model: nn.Module, layer: str | None) -> str | None:
    """Return the last convolution on the way to a layer that has rows and columns, else the last such map, else None.

    Parameters
    ----------
    listing
        What `attribkit.inspect` says of the model.
    model
        The model: only its modules count, since Captum looks at nothing else.
    layer
        Where the target is; None: at the end.
    """
    names = list(listing.layers)
    modules = dict(model.named_modules())
    end = names.index(layer) if layer in names else len(names)
    maps = [
        site
        for site in listing.sites
        if site.name in modules
        and (site.name not in names or names.index(site.name) < end)
        and site.layout == "NCHW"
        and site.output_shape is not None
        and site.output_shape[2] * site.output_shape[3] > 1
    ]
    convolutions = [site for site in maps if site.kind == "conv"]
    found = (convolutions or maps)[-1:]
    return found[0].name if found else None


def rows_of(value, row: int, count: int):
    """Return an option for one of ``count`` samples: a tensor with a row for each is cut, anything else is for all."""
    if isinstance(value, Tensor) and value.ndim > 0 and len(value) == count > 1:
        return value[row : row + 1]
    return value
