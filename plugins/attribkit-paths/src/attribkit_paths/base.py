"""What the methods share: maps of many changed copies by any method, a bounded number of rows at once."""

from __future__ import annotations

import torch

import attribkit as ak
from attribkit.errors import InputError, InputTypeError


def whole(name, value, least):
    """Return an option that must be an int of at least ``least``.

    Raises
    ------
    InputError
        It is none.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputTypeError(f"{name} must be an int, got {value!r}")
    if value < least:
        raise InputError(f"{name} must be at least {least}, got {value}")
    return value


def not_negative(name, value):
    """Return an option that must be a number of at least 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InputTypeError(f"{name} must be a number, got {value!r}")
    if not 0 <= value < float("inf"):
        raise InputError(f"{name} must be a finite number of at least 0, got {value}")
    return float(value)


def like(name, value, inputs):
    """Return an option that is a number, or a tensor that expands to the inputs, as a tensor of the inputs' shape."""
    tensor = torch.as_tensor(value, dtype=inputs.dtype, device=inputs.device).detach()
    try:
        return tensor.expand_as(inputs)
    except RuntimeError as error:
        shapes = f"{tuple(tensor.shape)}, which does not expand to the inputs' {tuple(inputs.shape)}"
        raise InputError(f"{name} has shape {shapes}") from error


def find(base, own):
    """Return an instance of the method that makes the maps: a name, a class or an instance.

    Raises
    ------
    InputError
        It is no method, or the very method that asks.
    """
    if isinstance(base, str):
        known = ak.methods()
        if base not in known:
            raise InputError(f"{own} base={base!r} is no method; there are {', '.join(known)}")
        base = known[base].load()
    if isinstance(base, type) and issubclass(base, ak.Method):
        base = base()
    if not isinstance(base, ak.Method):
        raise InputTypeError(f"{own} base must be a method's name, class or instance, got {base!r}")
    if base.name == own:
        raise InputError(f"{own} base={own!r} would never end")
    return base


def maps(base, model, target, samples, copies, copy, rows):
    """Yield the maps of changed copies, a bounded number at once.

    Parameters
    ----------
    base
        The method's instance.
    model, target
        The model and the target of the caller's samples.
    samples, copies
        How many samples there are, and how many copies of each.
    copy
        ``copy(sample, k)`` makes rows [B, C, H, W] of LongTensors [B]: the number of a sample and of its copy.
    rows
        How many rows go through the model at once.

    Yields
    ------
    sample, k : LongTensor [B]
    found : Tensor [B, C, H, W]
    """
    whole("rows", rows, 1)
    for start in range(0, samples * copies, rows):
        numbers = torch.arange(start, min(start + rows, samples * copies))
        sample, k = numbers // copies, numbers % copies
        found = base.attribute(model, copy(sample, k), target.take(sample))
        yield sample, k, found[0] if isinstance(found, tuple) else found
