"""Checkpoints: read without ever running code from the file, and fit to a model or say what does not fit."""

from __future__ import annotations

import contextlib
import copy
import os
import pickletools
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from attribkit._kept import one_line
from attribkit.errors import CheckpointError

__all__ = ["State", "load_weights", "misfits", "other_classes", "read_checkpoint", "without_prefixes"]

State = OrderedDict[str, torch.Tensor]

# Keys under which training scripts keep the weights; the averaged ones come first, as they are what is evaluated.
WRAPPERS = ("state_dict_ema", "model_ema", "ema_state_dict", "state_dict", "model_state_dict", "model", "module", "net")
# Prefixes that wrappers put before every name: DataParallel and AveragedModel, torch.compile, Lightning.
PREFIXES = ("module.", "_orig_mod.", "model.")

_REFUSED = (
    "checkpoint {name}: refused, it holds the object {object!r}, and loading it would run code; only tensors in plain"
    " containers are loaded (save model.state_dict() alone)"
)


def read_checkpoint(path: str | os.PathLike[str]) -> State:
    """Read a checkpoint's weights.

    A ``.safetensors`` file is read as such, anything else with ``torch.load(weights_only=True)``, which builds tensors
    and plain containers and refuses every other object: nothing in the file is executed. The weights may lie under one
    of the usual keys (``state_dict``, ``model``, …); averaged weights such as ``model_ema`` win over plain ones.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    OrderedDict of str to torch.Tensor
        The state dict, on the CPU, with the names as they are in the file.

    Raises
    ------
    CheckpointError
        If the file is missing, a directory, empty, truncated, damaged, unsafe, or holds no weights.
    """
    name = os.fspath(path)
    if os.path.isdir(name):
        raise CheckpointError(f"checkpoint {name}: is a directory, not a file")
    try:
        with open(name, "rb") as file:
            if not file.read(1):
                raise CheckpointError(f"checkpoint {name}: the file is empty (0 bytes)")
    except FileNotFoundError:
        raise CheckpointError(f"checkpoint {name}: no such file") from None
    except OSError as error:
        raise CheckpointError(f"checkpoint {name}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"checkpoint {name!r}: is no usable file name: {error}") from error
    content = _read_safetensors(name) if name.lower().endswith(".safetensors") else _read_pickle(name)
    return _unwrap(content, name)


def without_prefixes(state: State, model: nn.Module) -> State:
    """Return ``state`` without the prefixes (``module.``, …) that every name bears, unless the model's names do too."""
    expected = model.state_dict().keys()
    names = dict.fromkeys(state)
    taken = ""
    while not expected & names.keys():
        prefix = next((prefix for prefix in PREFIXES if all(key.startswith(prefix) for key in names)), None)
        if prefix is None:
            break
        names, taken = dict.fromkeys(key.removeprefix(prefix) for key in names), taken + prefix
    if not taken:
        return state
    state = copy.copy(state)  # keeps the formats' versions, which the next line renames too
    consume_prefix_in_state_dict_if_present(state, taken)
    return state


def load_weights(model: nn.Module, state: State, *, checkpoint: str, name: str) -> None:
    """Copy ``state`` into ``model``, or raise and leave the model as it was.

    Batch norm's ``num_batches_tracked`` may be missing (old checkpoints lack it, and evaluation does not use it), and
    buffers that the model computes itself may be there too much.

    Parameters
    ----------
    model
        The model to fill.
    state
        The weights by name.
    checkpoint, name
        What the error calls the checkpoint and the model.

    Raises
    ------
    CheckpointError
        If a weight is missing, unexpected, of another shape or complex; the message names the first three of each.
    """
    wrong = misfits(model, state)
    if wrong:
        raise CheckpointError(f"checkpoint {checkpoint} does not fit {name}: {wrong}")
    fitting: Any = model.state_dict()
    fitting.update((key, value) for key, value in state.items() if key in fitting)
    if hasattr(state, "_metadata"):
        fitting._metadata = state._metadata
    try:
        model.load_state_dict(fitting)
    except RuntimeError as error:  # a module's own checks on loading
        raise CheckpointError(f"checkpoint {checkpoint} does not fit {name}: {' '.join(str(error).split())}") from error


def misfits(model: nn.Module, state: Mapping[str, torch.Tensor]) -> str:
    """Return in words how ``state`` does not fit ``model``; an empty string when it does."""
    expected = {key: value for key, value in model.state_dict().items() if isinstance(value, torch.Tensor)}
    computed = {key for key, _ in model.named_buffers()} - expected.keys()  # not persistent: rebuilt with the model
    missing = [key for key in expected if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in expected and key not in computed]
    shapes = [
        f"{key} has shape {list(state[key].shape)} where the model has {list(value.shape)}"
        for key, value in expected.items()
        if key in state and state[key].shape != value.shape
    ]
    types = [
        f"{key} is {str(state[key].dtype).removeprefix('torch.')} where the model has real numbers"
        for key, value in expected.items()
        if key in state and state[key].is_complex() and not value.is_complex()
    ]
    parts = (
        _some(missing, "missing"),
        _some(unexpected, "unexpected"),
        _some(shapes, "of another shape"),
        _some(types, "of another type"),
    )
    return "; ".join(part for part in parts if part)


def other_classes(model: nn.Module, state: State) -> int | None:
    """Return the number of classes in ``state`` where it differs from the model's, else None.

    It is read from the classifier (what timm's ``pretrained_cfg`` names so, else the model's last linear layer or
    convolution), and only where that layer alone differs, in nothing but its number of outputs.
    """
    cfg = getattr(model, "pretrained_cfg", None)
    named = cfg.get("classifier") if isinstance(cfg, Mapping) else None
    heads = [named] if isinstance(named, str) else list(named or ())
    if not heads:
        layers = [key for key, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
        heads = layers[-1:]
    found = set()
    for key, value in model.state_dict().items():
        given = state.get(key)
        if given is None or given.shape == value.shape:
            continue
        if key.rpartition(".")[0] not in heads or given.shape[1:] != value.shape[1:] or not given.dim():
            return None
        found.add(given.shape[0])
    return found.pop() if len(found) == 1 else None


def _some(items: list[str], what: str, most: int = 3) -> str:
    if not items:
        return ""
    return f"{len(items)} {what}: {', '.join(items[:most])}" + (", …" if len(items) > most else "")


def _read_safetensors(name: str) -> Any:
    try:
        return safetensors.torch.load_file(name, device="cpu")
    # what the library raises at types and shapes that torch does not have is of many classes
    except Exception as error:
        reason = one_line(error, 300)
        raise CheckpointError(
            f"checkpoint {name}: is no valid safetensors file, damaged or truncated: {reason}"
        ) from error


def _read_pickle(name: str) -> Any:
    archived = _check_archive(name)
    try:
        with warnings.catch_warnings():  # torch's hints about pickle protocols would only repeat the error below
            warnings.simplefilter("ignore")
            # Reading an archive, some versions of torch believe what the pickle says of a storage's length and go
            # beyond the bytes that are there; mapping it, none does.
            content = torch.load(name, map_location="cpu", weights_only=True, mmap=archived)
    # A damaged or hostile file can make the restricted unpickler raise anything (KeyError, IndexError, EOFError, …).
    except Exception as error:
        message = " ".join(str(error).split())
        named = re.search(r"GLOBAL ([\w.]+)", message)
        if named:
            raise CheckpointError(_REFUSED.format(name=name, object=named[1])) from error
        found = _first_object(name)
        if found:
            raise CheckpointError(_REFUSED.format(name=name, object=found)) from error
        if "Weights only load failed" in message:
            reason = re.search(r"WeightsUnpickler error: (.*?)(?: Check the documentation|$)", message)
            raise CheckpointError(
                f"checkpoint {name}: refused, it is not a plain file of tensors"
                + (f" ({reason[1].strip()[:200]})" if reason else "")
            ) from error
        said = isinstance(error, RuntimeError | OSError) and re.sub(r"^\[.*?\][ .]*", "", message).split(". ")[0][:300]
        raise CheckpointError(
            f"checkpoint {name}: cannot be read, damaged, truncated or no checkpoint" + (f": {said}" if said else "")
        ) from error
    _check_storages(content, name)
    return content


def _check_archive(name: str) -> bool:
    """Tell whether a file is a zip archive, as torch saves; one that holds code or unpacks to more is refused."""
    with open(name, "rb") as file:
        size, archived = os.fstat(file.fileno()).st_size, file.read(4) == b"PK\3\4"
    if not archived:
        return False
    try:
        with zipfile.ZipFile(name) as archive:
            members = archive.infolist()
    except Exception as error:  # zipfile raises what it stumbles over: struct.error, UnicodeDecodeError, …
        raise CheckpointError(
            f"checkpoint {name}: cannot be read, damaged, truncated or no checkpoint: {one_line(error)}"
        ) from error
    if any(member.filename.endswith("constants.pkl") for member in members):
        raise CheckpointError(
            f"checkpoint {name}: is a TorchScript archive, which holds code; save a state_dict instead"
        )
    packed = any(member.compress_type != zipfile.ZIP_STORED for member in members)
    if packed or sum(member.file_size for member in members) > size:
        raise CheckpointError(f"checkpoint {name}: refused, its contents are compressed, which torch never does")
    return True


def _check_storages(content: Any, name: str) -> None:
    """Check that the tensors' storages take no more bytes than the file has: torch allocates what a pickle says."""
    size, seen, pending, storages = os.path.getsize(name), set(), [content], {}
    while pending:
        item = pending.pop()
        if isinstance(item, torch.Tensor):
            if item.layout is torch.strided and item.device.type == "cpu":
                storage = item.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
        elif isinstance(item, dict | list | tuple) and id(item) not in seen:
            seen.add(id(item))
            pending.extend(item.values() if isinstance(item, dict) else item)
    total = sum(storages.values())
    if total > size:
        raise CheckpointError(f"checkpoint {name}: refused, it claims {total:,} bytes of weights and has {size:,}")


def _first_object(name: str) -> str | None:
    """Return the first class or function that a pickle names, if torch's own message does not say it.

    The opcodes are only listed, nothing is built or imported. It serves the message alone.
    """
    strings: list[str] = []  # what STACK_GLOBAL takes its two names from
    memo: list[Any] = []
    try:
        with contextlib.ExitStack() as stack:
            stream: Any = stack.enter_context(open(name, "rb"))
            if zipfile.is_zipfile(name):
                archive = stack.enter_context(zipfile.ZipFile(name))
                member = next(member for member in archive.namelist() if member.endswith("data.pkl"))
                stream = stack.enter_context(archive.open(member))
            last: Any = None
            for operation, argument, _ in pickletools.genops(stream):
                found = None
                if operation.name == "MEMOIZE":
                    memo.append(last)
                elif operation.name == "GLOBAL":
                    found = str(argument).replace(" ", ".")
                elif operation.name == "STACK_GLOBAL":
                    found = ".".join(strings[-2:])
                if found is not None and not found.startswith(("collections.OrderedDict", "torch.")):
                    return found
                last = argument
                if memo and operation.name in ("BINGET", "LONG_BINGET") and isinstance(argument, int):
                    last = memo[argument]
                if isinstance(last, str):
                    strings.append(last)
    except Exception:  # no pickle at all: the caller's own words are the better ones
        return None
    return None


def _unwrap(content: Any, name: str) -> State:
    for _ in range(4):  # a state dict itself holds no dictionaries, so a wrapper's key cannot be a weight's name
        inner = content if isinstance(content, Mapping) else {}
        key = next((key for key in WRAPPERS if isinstance(inner.get(key), Mapping) and inner[key]), None)
        if key is None:
            break
        content = inner[key]
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"checkpoint {name}: holds a {type(content).__name__}, not a dictionary of weights (a state_dict)"
        )
    state: State = OrderedDict()
    state.update((key, value) for key, value in content.items() if isinstance(value, torch.Tensor))
    state.pop("n_averaged", None)  # torch's AveragedModel counts here
    if not state or not all(isinstance(key, str) for key in state):
        keys = ", ".join(f"{key!r:.60}" for key in list(content)[:5]) or "none"
        raise CheckpointError(f"checkpoint {name}: holds no weights by name; its keys: {keys}")
    if hasattr(content, "_metadata"):  # the versions of the modules' formats, as torch saves them
        state._metadata = content._metadata  # type: ignore[attr-defined]
    return state
