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
from torch.utils.weak import TensorWeakRef

from attribkit.engine.incremental.errors import TORCHS_OWN, LooksAtValues, NotReplayable
from attribkit.engine.incremental.operations import pure_twin, refusal, returns_the_like, written

#: Ways by which values leave torch, unseen by any operation.
_ESCAPES = frozenset({"numpy", "tolist", "__array__", "__dlpack__", "data_ptr", "untyped_storage", "storage", "set_"})


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


class Value:
    """A tensor that was met: an input (0), from outside the forward pass, or a call's output.

    One computed from the input is not held on to: the model's own forward pass lets go of most, and in a long one they
    are more memory than all else together.
    """

    def __init__(self, tensor: Tensor, *, outside: bool, varies: bool) -> None:
        self.shape, self.stride, self.dtype = tensor.shape, tensor.stride(), tensor.dtype
        self.get: Callable[[], Tensor | None] = TensorWeakRef(tensor) if varies else lambda: tensor
        self.outside = outside
        #: computed from the input
        self.varies = varies
        #: written to in place, by operations that are not in the recording for they vary with nothing
        self.mutated = False
        #: what it held before an in-place operation, or at the end
        self.saved: Tensor | None = None
        self.uses = 0
        self.stale = False

    @property
    def tensor(self) -> Tensor | None:
        """The tensor itself, whatever it holds now; None where nobody has it any more."""
        return self.get()

    @property
    def held(self) -> Tensor:
        """What it held. Known of results and of what does not vary."""
        held = self.tensor if self.saved is None else self.saved
        if held is None:
            raise NotReplayable("a value of the forward pass is gone")
        return held


@dataclass
class Recording:
    """A forward pass: its calls, its values by index, and what it returned with values as `Ref`."""

    calls: list[Call] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)
    leaves: list[Any] = field(default_factory=list)
    spec: TreeSpec | None = None


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
        It drew random numbers, looked at values (`LooksAtValues`), or wrote to memory in a way that cannot be told
        apart.
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
    recorder.say_trouble()
    recording = recorder.recording
    leaves, recording.spec = tree_flatten(returned)
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            ref = recorder.ref(leaf)
            recording.values[ref.index].saved = leaf
            recording.leaves.append(ref)
        else:
            recording.leaves.append(leaf)
    recorder.say_trouble()
    return recording


class _Escapes(TorchFunctionMode):
    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in _ESCAPES:
            value = self.recorder.known(args[0]) if args else None
            if value is not None and self.recorder.recording.values[value].varies:
                why = f"the forward pass takes values out of torch ({func.__name__})"
                self.recorder.give_up(LooksAtValues(why))
        return func(*args, **(kwargs or {}))


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    #: They come here to be refused; torch itself would raise instead of running them.
    supports_higher_order_operators = True

    def __init__(self, x: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.recording = Recording()
        #: by a tensor's id, which value it is now, and the tensor: another one may have come to lie where it was
        self.names: dict[int, tuple[int, Callable[[], Tensor | None]]] = {}
        self.by_storage: dict[int, list[Callable[[], Tensor | None]]] = {}
        self.trouble: NotReplayable | None = None
        self.failed: Exception | None = None
        self._register(x, varies=True)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Torch would import its compiler for nothing but to keep it from this class, which takes seconds.

        Where it is imported already, it is told to run everything as it was written.
        """
        return False

    def give_up(self, reason: str | NotReplayable) -> None:
        """Note the first reason; the forward pass goes on, for its own errors come first."""
        if self.trouble is None:
            self.trouble = NotReplayable(reason) if isinstance(reason, str) else reason

    def say_trouble(self) -> None:
        """Raise what was noted, as a copy: raised itself it would hold the frames that hold it, tensors and all."""
        if self.trouble is not None:
            raise type(self.trouble)(*self.trouble.args)

    def known(self, tensor: Any) -> int | None:
        """Return which value a tensor is now; None where it is none."""
        index, there = self.names.get(id(tensor), (None, None))
        return index if there is not None and there() is tensor else None

    def ref(self, tensor: Tensor) -> Ref:
        index = self.known(tensor)
        if index is None:
            index = self._register(tensor, outside=True)
        value = self.recording.values[index]
        value.uses += 1
        if value.stale:
            self.give_up("an in-place operation wrote to memory that another tensor shares")
        return Ref(index)

    def _register(self, tensor: Tensor, *, outside: bool = False, varies: bool = False) -> int:
        index = len(self.recording.values)
        value = Value(tensor, outside=outside, varies=varies)
        self.recording.values.append(value)
        self.names[id(tensor)] = index, value.get
        key = _storage(tensor)
        if key is not None:
            self.by_storage.setdefault(key, []).append(value.get)
        return index

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.trouble is not None:
            return func(*args, **kwargs)
        leaves, spec = tree_flatten((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        known = [self.known(tensor) for tensor in tensors]
        varies = any(index is not None and self.recording.values[index].varies for index in known)
        reason = refusal(func, args, kwargs, tensors, varies)
        if reason is not None:
            self.give_up(reason)
            return func(*args, **kwargs)
        noted = [self.ref(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        overwritten = written(func, args, kwargs)
        for tensor in overwritten:
            self._keep(tensor)
        try:
            output = func(*args, **kwargs)
        except Exception as error:
            if type(error) in TORCHS_OWN:
                self.failed = error
            raise
        if not overwritten:
            outputs = output if isinstance(output, (tuple, list)) else [output]
            flat = [
                self._register(o, varies=varies) if isinstance(o, Tensor) else None
                for o in tree_flatten(list(outputs))[0]
            ]
            self.recording.calls.append(Call(func, noted, spec, flat, not isinstance(output, (tuple, list))))
        elif varies:
            self._write(func, noted, leaves, spec, overwritten)
        else:
            for tensor in overwritten:
                self._mutate(tensor)
        return output

    def _write(self, func: Any, noted: list[Any], leaves: list[Any], spec: TreeSpec, overwritten: list[Tensor]) -> None:
        """Note an in-place operation as its pure twin, whose result the tensor's name stands for from now on."""
        pure = pure_twin(func)
        if pure is None or len(overwritten) != 1:
            return self.give_up(f"{func} writes in place and has no pure twin")
        tensor = overwritten[0]
        if not returns_the_like(pure, leaves, spec, tensor):  # a comparison in place writes numbers
            return self.give_up(f"{func} writes in place what its pure twin returns in another dtype")
        if self.recording.values[self.names[id(tensor)][0]].outside:
            return self.give_up("the forward pass writes to a tensor that outlives it")
        aliases = []
        for other, there in self._sharing(tensor):
            if _same_place(there, tensor):  # another name for the very same elements
                aliases.append(there)
            else:
                other.stale = True
        new = self._register(tensor, varies=True)
        for alias in aliases:
            self.names[id(alias)] = new, self.names[id(alias)][1]
        self.recording.calls.append(Call(pure, noted, spec, [new], True))
        return None

    def _mutate(self, tensor: Tensor) -> None:
        """Note that a tensor that does not vary, and whatever shares its memory, is another constant from now on."""
        for other, there in self._sharing(tensor):
            if other.outside:
                return self.give_up("the forward pass writes to a tensor that outlives it")
            if other.varies:
                other.stale = True
            else:
                self.recording.values[self._register(there)].mutated = True
        return None

    def _sharing(self, tensor: Tensor) -> list[tuple[Value, Tensor]]:
        """Return the values that live in a tensor's memory now, and their tensors."""
        alive = {
            id(there): there for get in self.by_storage.get(_storage(tensor) or 0, []) if (there := get()) is not None
        }
        return [(self.recording.values[self.names[name][0]], there) for name, there in alive.items()]

    def _keep(self, tensor: Tensor) -> None:
        """Save a constant that is about to be overwritten where something has used it."""
        for value, there in self._sharing(tensor):
            if value.uses and value.saved is None and not value.stale and not value.varies:
                value.saved = there.clone()


def _storage(tensor: Tensor) -> int | None:
    try:
        with torch._C.DisableTorchFunction():
            storage = tensor.untyped_storage()
            return int(storage._cdata) if storage.nbytes() else None
    except (RuntimeError, NotImplementedError):
        return None


def _same_place(a: Tensor, b: Tensor) -> bool:
    return bool(a.storage_offset() == b.storage_offset()) and a.shape == b.shape and a.stride() == b.stride()
