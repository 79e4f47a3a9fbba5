"""The weights of a model at several epochs: finding the files, and filling a copy of the model with each."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import nn

from attribkit.errors import InputError, InputTypeError, is_int
from attribkit.models.checkpoint import load_weights, read_checkpoint, without_prefixes

__all__ = ["Snapshots", "check_snapshots", "filled", "find_snapshots"]

Snapshots = Mapping[int, nn.Module | str | os.PathLike[str]]

_SUFFIXES = (".safetensors", ".pt", ".pth")


def find_snapshots(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> dict[int, Path]:
    """Find the snapshots of a training run, by epoch.

    Parameters
    ----------
    paths
        A run's folder (its ``snapshots`` folder, where it has one), or files. The last number in a file's name is its
        epoch: ``epoch-05.safetensors`` is epoch 5; in a folder, files without a number are passed over.

    Returns
    -------
    dict of int to Path
        In order of the epochs.

    Raises
    ------
    InputError
        There is no such file or folder, it holds no snapshot, a file's name has no number, or two have the same.
    """
    given = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    found: dict[int, Path] = {}
    for path in map(Path, given):
        if path.is_dir():
            folder = path / "snapshots" if (path / "snapshots").is_dir() else path
            files = sorted(f for f in folder.iterdir() if f.suffix.lower() in _SUFFIXES and re.search(r"\d", f.stem))
            if not files:
                raise InputError(f"snapshots: {folder} holds none (files such as epoch-05.safetensors)")
        elif path.is_file():
            files = [path]
        else:
            raise InputError(f"snapshots: {path}: no such file or folder")
        for file in files:
            numbers = re.findall(r"\d+", file.stem)
            if not numbers:
                raise InputError(f"snapshots: {file.name} has no number in its name to say its epoch")
            epoch = int(numbers[-1])
            if epoch in found:
                raise InputError(f"snapshots: {found[epoch]} and {file} are both of epoch {epoch}")
            found[epoch] = file
    if not found:
        raise InputError("snapshots: give a run's folder or at least one file")
    return dict(sorted(found.items()))


def check_snapshots(snapshots: Snapshots) -> Snapshots:
    """Check a mapping of epochs to models or files, and return it in the order of the epochs.

    Raises
    ------
    InputTypeError, InputError
        It is no such mapping, or empty.
    """
    if not isinstance(snapshots, Mapping):
        raise InputTypeError(f"snapshots must map epochs to models or files, got {type(snapshots).__name__}")
    if not snapshots:
        raise InputError("snapshots is empty: give at least one epoch")
    for epoch, snapshot in snapshots.items():
        if not is_int(epoch) or epoch < 0:
            raise InputTypeError(f"snapshots: an epoch must be an int from 0, got {epoch!r}")
        if not isinstance(snapshot, nn.Module | str | os.PathLike):
            raise InputTypeError(f"snapshots: epoch {epoch} must be a model or a file, got {type(snapshot).__name__}")
    return dict(sorted(snapshots.items()))


def filled(snapshot: nn.Module | str | os.PathLike[str], model: nn.Module | None, name: str) -> nn.Module:
    """Return a snapshot's model: itself, or a copy of ``model`` filled with the file's weights.

    The weights may be of half precision; they are cast to the model's.

    Raises
    ------
    CheckpointError
        The file cannot be read or does not fit.
    InputError
        It is a file and there is no model to fill.
    """
    if isinstance(snapshot, nn.Module):
        return snapshot
    if model is None:
        raise InputError(f"snapshot {os.fspath(snapshot)}: a file of weights needs model= to be filled with them")
    network = copy.deepcopy(model)
    state = without_prefixes(read_checkpoint(snapshot), network)
    load_weights(network, state, checkpoint=os.fspath(snapshot), name=name)
    return network
