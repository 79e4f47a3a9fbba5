"""One forward pass as a flat list of calls without side effects.

The recorder sits below autograd, where every model is made of the same few hundred operations, whatever modules,
functions, hooks or scripted parts called them. In-place operations are noted as their pure twins.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import TreeSpec, tree_flatten

from attribkit.engine.incremental.errors import TORCHS_OWN, NotReplayable

#: Ways by which values leave torch, unseen by any operation.
_ESCAPES = frozenset({"numpy", "tolist", "__array__", "__dlpack__", "data_ptr", "untyped_storage", "storage", "set_"})

#: Operations that read or write memory by its layout, which a replay need not share.
_BY_LAYOUT = frozenset({"as_strided_scatter", "set_", "resize_", "resize_as_", "_resize_output_", "view.dtype"})


@dataclass(frozen=True)
class Ref:
    """Stands for a value in a call's arguments."""

    index: int


@dataclass
class Call:
    """One call of a pure operation; ``leaves`` holds its flattened arguments, values as `Ref`."""

    function: Any
    leaves: list[Any]
    spec: TreeSpec
    outputs: list[int | None]
    single: bool


@dataclass
class Value:
    """A tensor that was met: an input (0), from outside the forward pass, or a call's output."""

    tensor: Tensor
    outside: bool = False
    #: computed from the input
    varies: bool = False
    #: written to in place, by operations that are not in the recording for they vary with nothing
    mutated: bool = False
    #: what it held before an in-place operation
    saved: Tensor | None = None
    uses: int = 0
    stale: bool = False

    @property
    def held(self) -> Tensor:
        return self.saved if self.saved is not None else self.tensor


@dataclass
class Recording:
    """A forward pass: its calls, its values by index, and what it returned with values as `Ref`."""

    calls: list[Call] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)
    leaves: list[Any] = field(default_factory=list)
    spec: TreeSpec | None = None
    returned: Any = None


def record(function: Callable[[Tensor], Any], x: Tensor) -> Recording:
    """Run ``function`` on ``x`` and return what it did.

    Parameters
    ----------
    function
        Returns anything; the tensors in it that pytree finds are the results.
    x
        Float tensor [N, C, H, W]; it may be written to.

    Raises
    ------
    NotReplayable
        It drew random numbers, looked at values, or wrote to memory in a way that cannot be told apart.
    Exception
        Whatever ``function`` raises.
    """
    recorder = _Recorder(x)
    with torch.no_grad(), _Escapes(recorder), recorder:
        try:
            returned = function(x)
        except Exception as error:
            if error is recorder.failed:
                raise NotReplayable(f"an operation cannot be recorded: {error}") from error
            raise
    if recorder.trouble:
        raise NotReplayable(recorder.trouble)
    recording = recorder.recording
    leaves, recording.spec = tree_flatten(returned)
    recording.returned = returned
    recording.leaves = [recorder.ref(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    if recorder.trouble:
        raise NotReplayable(recorder.trouble)
    return recording


class _Escapes(TorchFunctionMode):
    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in _ESCAPES:
            value = self.recorder.known(args[0]) if args else None
            if value is not None and self.recorder.recording.values[value].varies:
                self.recorder.give_up(f"the forward pass takes values out of torch ({func.__name__})")
        return func(*args, **(kwargs or {}))


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, x: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.recording = Recording()
        self.ids: dict[int, int] = {}
        self.by_storage: dict[int, list[int]] = {}
        self.trouble = ""
        self.failed: Exception | None = None
        self.recording.values[self._register(x)].varies = True

    def give_up(self, reason: str) -> None:
        """Note the first reason; the forward pass goes on, for its own errors come first."""
        self.trouble = self.trouble or reason

    def known(self, tensor: Any) -> int | None:
        return self.ids.get(id(tensor))

    def ref(self, tensor: Tensor) -> Ref:
        index = self.ids.get(id(tensor))
        if index is None:
            index = self._register(tensor, outside=True)
        value = self.recording.values[index]
        value.uses += 1
        if value.stale:
            self.give_up("an in-place operation wrote to memory that another tensor shares")
        return Ref(index)

    def _register(self, tensor: Tensor, *, outside: bool = False) -> int:
        index = len(self.recording.values)
        self.recording.values.append(Value(tensor, outside))
        self.ids[id(tensor)] = index
        key = _storage(tensor)
        if key is not None:
            self.by_storage.setdefault(key, []).append(index)
        return index

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.trouble:
            return func(*args, **kwargs)
        leaves, spec = tree_flatten((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        known = [self.known(tensor) for tensor in tensors]
        varies = any(index is not None and self.recording.values[index].varies for index in known)
        reason = _refusal(func, args, kwargs, tensors, varies)
        if reason:
            self.give_up(reason)
            return func(*args, **kwargs)
        noted = [self.ref(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        written = _written(func, args, kwargs)
        for tensor in written:
            self._keep(tensor)
        try:
            output = func(*args, **kwargs)
        except Exception as error:
            if type(error) in TORCHS_OWN:
                self.failed = error
            raise
        if not written:
            outputs = output if isinstance(output, (tuple, list)) else [output]
            flat = [self._register(o) if isinstance(o, Tensor) else None for o in tree_flatten(list(outputs))[0]]
            for index in flat:
                if index is not None:
                    self.recording.values[index].varies = varies
            self.recording.calls.append(Call(func, noted, spec, flat, not isinstance(output, (tuple, list))))
        elif varies:
            self._write(func, noted, spec, written)
        else:
            for tensor in written:
                self._mutate(tensor)
        return output

    def _write(self, func: Any, noted: list[Any], spec: TreeSpec, written: list[Tensor]) -> None:
        """Note an in-place operation as its pure twin, whose result the tensor's name stands for from now on."""
        pure = _pure(func)
        if pure is None or len(written) != 1:
            return self.give_up(f"{func} writes in place and has no pure twin")
        tensor = written[0]
        if self.recording.values[self.ids[id(tensor)]].outside:
            return self.give_up("the forward pass writes to a tensor that outlives it")
        aliases = []
        for index in self._sharing(tensor):
            other = self.recording.values[index]
            if _same_place(other.tensor, tensor):  # another name for the very same elements
                aliases.append(other.tensor)
            else:
                other.stale = True
        new = self._register(tensor)
        self.recording.values[new].varies = True
        for alias in aliases:
            self.ids[id(alias)] = new
        self.recording.calls.append(Call(pure, noted, spec, [new], True))
        return None

    def _mutate(self, tensor: Tensor) -> None:
        """Note that a tensor that does not vary, and whatever shares its memory, is another constant from now on."""
        for index in self._sharing(tensor):
            other = self.recording.values[index]
            if other.outside:
                return self.give_up("the forward pass writes to a tensor that outlives it")
            if other.varies:
                other.stale = True
            else:
                self.recording.values[self._register(other.tensor)].mutated = True
        return None

    def _sharing(self, tensor: Tensor) -> list[int]:
        """Return the values that live in a tensor's memory now."""
        found = self.by_storage.get(_storage(tensor) or 0, [])
        return [i for i in found if self.ids.get(id(self.recording.values[i].tensor)) == i]

    def _keep(self, tensor: Tensor) -> None:
        """Save what is about to be overwritten where something has used it."""
        for index in self._sharing(tensor):
            value = self.recording.values[index]
            # also where the operation that writes is its only user: that may run on full maps, made of the clean one
            if value.uses and value.saved is None and not value.stale:
                value.saved = value.tensor.clone()


def _storage(tensor: Tensor) -> int | None:
    try:
        with torch._C.DisableTorchFunction():
            storage = tensor.untyped_storage()
            return int(storage._cdata) if storage.nbytes() else None
    except (RuntimeError, NotImplementedError):
        return None


def _same_place(a: Tensor, b: Tensor) -> bool:
    return bool(a.storage_offset() == b.storage_offset()) and a.shape == b.shape and a.stride() == b.stride()


def _refusal(func: Any, args: Any, kwargs: Any, tensors: list[Tensor], varies: bool) -> str:
    tags = func.tags
    name = func._schema.name.rpartition("::")[2]
    if torch.Tag.nondeterministic_seeded in tags and not _undropped(func, args, kwargs):
        return f"{func} draws random numbers"
    masks = any(t.dtype in (torch.bool, torch.uint8) for t in tensors[1:])
    by_numbers = name in ("index", "index_put", "index_put_") and not masks  # tagged for the sake of masks
    by_values = torch.Tag.data_dependent_output in tags or torch.Tag.dynamic_output_shape in tags
    if varies and by_values and not by_numbers:
        return f"{func} depends on the values it is given"
    overload = func._schema.overload_name
    if name in _BY_LAYOUT or f"{name}.{overload}" in _BY_LAYOUT:
        return f"{func} depends on how memory is laid out"
    if func.namespace not in ("aten", "prims", "torchvision"):
        return f"{func} is not torch's own"
    if any(type(t) not in (Tensor, torch.nn.Parameter, torch.nn.Buffer) or t.layout != torch.strided for t in tensors):
        return f"{func} is given tensors of another kind"
    return ""


def _undropped(func: Any, args: Any, kwargs: Any) -> bool:
    """Tell whether an operation would draw numbers for its dropout alone, and drops nothing."""
    for position, argument in enumerate(func._schema.arguments):
        if argument.name == "dropout_p":
            return not kwargs.get("dropout_p", args[position] if position < len(args) else argument.default_value)
    return False


def _written(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    found: list[Tensor] = []
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        value = kwargs.get(argument.name, args[position] if position < len(args) else None)
        found.extend(t for t in (value if isinstance(value, (list, tuple)) else [value]) if isinstance(t, Tensor))
    return found


def _pure(func: Any) -> Any:
    """Return the operation of the same arguments that returns what this one writes to its first."""
    name, overload = func._schema.name.rpartition("::")[2], func._schema.overload_name or "default"
    if not name.endswith("_") or name.endswith("__"):
        return None
    packet = getattr(torch.ops.aten, name[:-1], None)
    return getattr(packet, overload, None) if packet is not None and overload in packet.overloads() else None
