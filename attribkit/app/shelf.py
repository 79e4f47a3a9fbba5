"""The models that the page may ask for, and those that are loaded: shared by all users, read-only."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from attribkit.app.kept import Kept
from attribkit.datasets import FASHION_LABELS
from attribkit.errors import CheckpointError, InputError, UnknownNameError, did_you_mean

if TYPE_CHECKING:
    from attribkit.features import ReceptiveField
    from attribkit.models.loading import LoadedModel

KEPT = 3
"""How many models stay loaded."""

CHECKPOINTS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")

OPEN_PREFIXES = ("timm", "torchvision")
"""Sources whose names alone decide what is built: a page may ask for any of them."""

OPEN_NAMES = ("zfnet-fashion", "zfnet")


@dataclass(eq=False)
class Shown:
    """A loaded model, with what is asked of it again and again.

    Attributes
    ----------
    loaded
        The model; nobody changes it.
    weights_file
        The checkpoint that it was filled from, or None.
    """

    loaded: LoadedModel
    weights_file: Path | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _fields: dict[str, ReceptiveField] = field(default_factory=dict, repr=False)

    @property
    def untrained(self) -> bool:
        """Whether the weights are random."""
        return self.loaded.weights == "random"

    @property
    def kind(self) -> str:
        """Return the kind of sample picture that the model can make sense of."""
        return "fashion" if tuple(self.loaded.labels or ()) == FASHION_LABELS else "photograph"

    @cached_property
    def layers(self) -> list[str]:
        """Return the layers worth looking at, or all of them where none stands out."""
        import torch

        import attribkit

        like = next(self.loaded.model.parameters(), torch.zeros(()))
        found = attribkit.inspect(self.loaded.model, torch.zeros(1, *self.loaded.input_size).to(like))
        return found.useful_layers or found.layers

    @cached_property
    def weights_hash(self) -> str:
        """Return the SHA-256 of the weights."""
        from attribkit.attribution import weights_hash

        return weights_hash(self.loaded.model)

    def field(self, layer: str) -> ReceptiveField:
        """Return the receptive fields of a layer's units."""
        from attribkit.features import receptive_field

        with self._lock:
            if layer not in self._fields:
                self._fields[layer] = receptive_field(self.loaded.model, self.loaded.input_size, layer)
            return self._fields[layer]


class Shelf:
    """Loads models for the page, and keeps the last few.

    Parameters
    ----------
    named
        Models that were named on the command line, the first with ``weights``: only these may be of any kind.
    weights
        The checkpoint of the first named model, or None.
    checkpoints
        A folder whose checkpoints may be chosen in the page, or None.
    pretrained
        Whether timm's and torchvision's models get their published weights, from the cache or by download.
    device
        Where they run, as torch names it.
    kept
        How many models stay loaded.

    Raises
    ------
    InputError
        ``checkpoints`` is no folder.
    """

    def __init__(
        self,
        named: Sequence[str] = (),
        weights: str | None = None,
        checkpoints: str | Path | None = None,
        pretrained: bool = False,
        device: str = "cpu",
        kept: int = KEPT,
    ) -> None:
        self.named = tuple(named)
        self.pretrained = pretrained
        self._weights, self._device = weights, device
        self._folder = None if checkpoints is None else Path(checkpoints)
        if self._folder is not None and not self._folder.is_dir():
            raise InputError(f"the folder of checkpoints {str(checkpoints)!r} is not there, or is no folder")
        self._loaded: Kept[Shown] = Kept(kept)
        self._lock = threading.Lock()
        self._loading: dict[tuple[str, str], threading.Lock] = {}

    @property
    def choices(self) -> list[str]:
        """Return the models to offer: those of the command line, then those that need no download."""
        from attribkit.models.packaged import default_model

        return list(dict.fromkeys([*self.named, default_model(), "zfnet-fashion"]))

    @property
    def checkpoints(self) -> list[str]:
        """Return the names of the checkpoints in the folder; none where there is no folder."""
        if self._folder is None:
            return []
        return sorted(p.name for p in self._folder.iterdir() if p.suffix in CHECKPOINTS and p.is_file())

    def get(self, model: str, checkpoint: str = "") -> Shown:
        """Return a model, loaded now or before; several threads may ask at once.

        Parameters
        ----------
        model
            Its name, as somebody wrote it in the page.
        checkpoint
            The name of a file in the folder of checkpoints, or ``""``.

        Raises
        ------
        InputError
            The page may not ask for that.
        AttribkitError
            It cannot be loaded.
        """
        key = (self._allowed(model.strip()), self._known(checkpoint))
        with self._lock:
            turn = self._loading.setdefault(key, threading.Lock())
        with turn:  # two users who want the same model wait for one; others do not wait
            try:
                return self._loaded.get_or(key, lambda: self._load(*key))
            finally:
                with self._lock:
                    self._loading.pop(key, None)

    def arguments(self, model: str, checkpoint: str = "") -> list[str]:
        """Return what `attribkit.load_model` is called with, as Python source."""
        weights = self._weights_of(model, checkpoint)
        return [json.dumps(model)] + ([f"weights={json.dumps(weights)}"] if weights is not None else [])

    def _load(self, model: str, checkpoint: str) -> Shown:
        from attribkit.models.loading import load_model

        weights = self._weights_of(model, checkpoint)
        loaded = load_model(model, weights=weights)
        loaded.model.to(self._device)
        file = Path(weights) if weights not in (None, "pretrained") else None
        return Shown(loaded, file)

    def _weights_of(self, model: str, checkpoint: str) -> str | None:
        if checkpoint and self._folder is not None:
            return str(self._folder / checkpoint)
        if self.named[:1] == (model,) and self._weights is not None:
            return self._weights
        from attribkit.models.packaged import find_packaged

        prefix, _, name = model.partition("/")
        if self.pretrained and prefix in OPEN_PREFIXES and find_packaged(name) is None:
            return "pretrained"
        return None

    def _allowed(self, model: str) -> str:
        """Return a model's name that the page may ask for: never one that runs code or reads a path of its choice."""
        prefix, slash, name = model.partition("/")
        if model in self.named or model in OPEN_NAMES or (slash and prefix in OPEN_PREFIXES and name):
            return model
        if not model:
            raise InputError("no model was named: choose one, or write a name such as timm/resnet18")
        if ":" in model or slash:
            raise InputError(
                f"{model!r} can only be named where the app is started (attribkit app --model): here any name of "
                "timm/… or torchvision/… will do"
            )
        from attribkit.models.loading import suggestion
        from attribkit.plugins import manager

        # a visitor shall not learn which folders there are
        known = {prefix: entry for prefix, entry in manager().models.items() if prefix != "run"}
        raise UnknownNameError(f"unknown model {model!r}: {suggestion(model, known)}")

    def _known(self, checkpoint: str) -> str:
        if checkpoint and checkpoint not in self.checkpoints:  # a listed name, so no path leads out of the folder
            raise CheckpointError(
                f"no checkpoint is called {checkpoint!r}: {did_you_mean(checkpoint, self.checkpoints)}"
            )
        return checkpoint
