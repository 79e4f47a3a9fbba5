"""Attribution: the result of a call, with everything needed to read, keep and repeat it."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import weakref
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from attribkit import _notebook
from attribkit._kept import DAMAGE, KeptError, one_line, read_kept
from attribkit._version import __version__
from attribkit.engine.coverage import Coverage
from attribkit.errors import AttribkitError, InputError
from attribkit.targets import Unit

if TYPE_CHECKING:
    import numpy as np

FORMAT = 1


@dataclass(eq=False)
class Attribution:
    """Maps, and what they are maps of.

    Attributes
    ----------
    values : Tensor
        Signed values of the inputs' shape [N, C, H, W], dtype and device; [N, K, C, H, W] from `attribkit.project`.
    method : str
        The method's name.
    target : LongTensor [N], Unit, tuple of Unit, or str
        The classes, the unit or units, or the callable's name.
    scores : Tensor
        The target's score on each input: [N], or [N, K].
    coverage : Coverage
        Which sites the method rewrote.
    extras : dict of str to Tensor
        What else the method found (occlusion: ``score_map``, ``label_map``).
    provenance : dict
        Model class, options, versions; `hash_weights` adds the weights' hash.
    """

    values: Tensor
    method: str
    target: Any
    scores: Tensor
    coverage: Coverage
    extras: dict[str, Tensor] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    _model: weakref.ref[nn.Module] | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        return f"Attribution({self.method}, values {tuple(self.values.shape)}, target {_short(self.target)})"

    def heatmap(self) -> Tensor:
        """Return the signed sum over channels: [N, H, W], or [N, K, H, W]."""
        return self.values.sum(-3)

    def numpy(self) -> np.ndarray[Any, Any]:
        """Return the values as a numpy array (bfloat16, which numpy lacks, as float32)."""
        values = self.values.detach().cpu()
        array: np.ndarray[Any, Any] = (values.float() if values.dtype == torch.bfloat16 else values).numpy()
        return array

    def hash_weights(self) -> str:
        """Return the SHA-256 of the model's parameters and buffers, and note it in the provenance.

        Raises
        ------
        AttribkitError
            The model no longer exists, or the attribution was loaded from a file that does not hold the hash.
        """
        if "weights_sha256" not in self.provenance:
            model = self._model() if self._model is not None else None
            if model is None:
                raise AttribkitError("the weights cannot be hashed: the model is gone")
            self.provenance["weights_sha256"] = weights_hash(model)
        return str(self.provenance["weights_sha256"])

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the attribution to a safetensors file, the metadata inside.

        The file is written under a temporary name and then renamed.

        Parameters
        ----------
        path
            Where to; an existing file is replaced.

        Raises
        ------
        OSError
            The folder does not exist or cannot be written.
        """
        from safetensors.torch import save

        tensors = {"values": self.values, "scores": self.scores}
        tensors |= {f"extras.{name}": tensor for name, tensor in self.extras.items()}
        target: Any
        if isinstance(self.target, Tensor):
            tensors["target"], target = self.target, {"kind": "classes"}
        elif isinstance(self.target, Unit):
            target = {"kind": "unit", "unit": asdict(self.target)}
        elif isinstance(self.target, tuple):
            target = {"kind": "units", "units": [asdict(unit) for unit in self.target]}
        else:
            target = {"kind": "name", "name": str(self.target)}
        header = {
            "format": FORMAT,
            "method": self.method,
            "target": target,
            "coverage": asdict(self.coverage),
            "provenance": self.provenance,
        }
        path = Path(path)
        contents = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        write_atomically(path, save(contents, {"attribkit": json.dumps(header, default=str)}))
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Attribution:
        """Read an attribution that `save` wrote. Nothing in the file is executed.

        Raises
        ------
        InputError
            The file is not such an attribution.
        OSError
            The file cannot be read.
        """
        path = Path(path)
        try:
            header, tensors = read_kept(path)
        except KeptError as error:
            raise InputError(f"{path.name} is not a saved attribution: {error}") from error
        if header.get("format") != FORMAT:
            raise InputError(f"{path.name} is not an attribution of format {FORMAT}")
        try:
            found = cls(
                values=tensors["values"],
                method=str(header["method"]),
                target=_load_target(header["target"], tensors),
                scores=tensors["scores"],
                coverage=_load_coverage(header["coverage"]),
                extras={k.removeprefix("extras."): v for k, v in tensors.items() if k.startswith("extras.")},
                provenance=dict(header["provenance"]),
            )
            _check_loaded(found)
        except DAMAGE as error:
            raise InputError(
                f"{path.name} is not a saved attribution: {type(error).__name__}: {one_line(error)}"
            ) from error
        return found

    def _repr_html_(self) -> str:
        from attribkit.report.notebook import attribution_html

        return attribution_html(self)

    def show(self) -> None:
        """Display the maps: in a notebook as HTML, elsewhere a summary as text."""
        text = f"{self!r}\n{self.coverage.sentence}"
        if _notebook.running():
            _notebook.Output().show(self._repr_html_(), text)
        else:
            print(text)


def _short(target: Any) -> str:
    if isinstance(target, Tensor):
        classes = target.tolist()
        return str(classes if len(classes) <= 6 else [*classes[:5], "…"])
    return str(target)


def _check_loaded(found: Attribution) -> None:
    """Check that what a file held can be an attribution: a map and a score for each sample."""
    values, scores = found.values, found.scores
    if not (values.is_floating_point() and scores.is_floating_point()) or min(values.ndim, scores.ndim) < 1:
        raise ValueError("its values and scores must be tensors of floats, with a row for each sample")
    samples = len(values)
    if len(scores) != samples or (isinstance(found.target, Tensor) and found.target.shape[:1] != (samples,)):
        raise ValueError(f"it has {samples} maps, and another number of scores or targets")


def _load_target(target: dict[str, Any], tensors: dict[str, Tensor]) -> Any:
    kind = target["kind"]
    if kind == "classes":
        return tensors["target"]
    if kind == "unit":
        return _load_unit(target["unit"])
    if kind == "units":
        return tuple(_load_unit(unit) for unit in target["units"])
    return str(target["name"])


def _load_unit(fields: dict[str, Any]) -> Unit:
    position = fields["position"]
    return Unit(**{**fields, "position": tuple(position) if isinstance(position, list) else position})


def _load_coverage(fields: dict[str, Any]) -> Coverage:
    if not isinstance(fields["method"], str) or not all(
        type(fields[n]) is int for n in ("rewritten", "plain", "gates")
    ):
        raise ValueError("its coverage is none")
    kinds = {kind: (int(done), int(total)) for kind, (done, total) in fields["kinds"].items()}
    return Coverage(**{**fields, "kinds": kinds, "left": tuple((str(n), str(r)) for n, r in fields["left"])})


def weights_hash(model: nn.Module) -> str:
    """Return the SHA-256 of a model's parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if isinstance(tensor, Tensor):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def write_atomically(path: Path, contents: bytes) -> None:
    """Write a file under a temporary name in its folder, then rename it; nothing half-written is left behind."""
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(contents)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def provenance(model: nn.Module, options: dict[str, Any]) -> dict[str, Any]:
    """Return what a result should remember of how it was made."""
    return {
        "model": type(model).__name__,
        "options": {name: _plain(value) for name, value in options.items()},
        "versions": {"attribkit": __version__, "torch": torch.__version__},
    }


def _plain(value: Any) -> Any:
    """Return what JSON keeps as it is: numbers, strings and lists of them; anything else by its repr."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else repr(value)
