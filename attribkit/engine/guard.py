"""Putting a model's tensors back: parameters, buffers, and tensors that a forward pass leaves on modules."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from attribkit.engine.splice import is_in_place, memory_of, written_by
from attribkit.engine.tree import parameters_of, paths_of


@contextmanager
def same_tensors(model: nn.Module, inputs: Tensor) -> Iterator[None]:
    """Put back what a call changes: buffers, parameters, ``requires_grad`` and ``.grad`` of parameters and inputs.

    Buffers are copied beforehand, for operations change them unseen (batch norm's statistics). A parameter is copied
    when an in-place function is about to write to it.

    Parameters
    ----------
    model
        The model about to run.
    inputs
        The caller's inputs.
    """
    modules = list(paths_of(model))
    parameters = [_Parameter(p) for p in parameters_of(model, modules)]
    guard = WriteGuard([p.parameter for p in parameters])
    inputs_requires_grad, inputs_grad = inputs.requires_grad, inputs.grad if inputs.is_leaf else None

    def restore_inputs() -> None:
        if inputs.is_leaf:
            if inputs.requires_grad != inputs_requires_grad:
                inputs.requires_grad_(inputs_requires_grad)
            if inputs.grad is not inputs_grad:
                inputs.grad = inputs_grad

    with ExitStack() as stack:  # from the last to the first, each of them whatever becomes of the others
        stack.callback(restore_inputs)
        stack.callback(guard.restore)
        stack.callback(_restore_all, parameters)
        stack.callback(_Owners(modules).restore)
        stack.callback(_Attributes(modules).restore)
        stack.callback(_restore_all, _buffers(modules))
        with guard:
            yield


def _restore_all(kept: Sequence[_Parameter | _Buffer]) -> None:
    """Restore all of them, whatever becomes of any; raise the first error."""
    first: Exception | None = None
    for one in kept:
        try:
            one.restore()
        except Exception as error:
            first = first or error
    if first is not None:
        raise first


class _Parameter:
    """A parameter as it is now, its values aside: those are the guard's."""

    __slots__ = ("data", "grad", "parameter", "requires_grad")

    def __init__(self, parameter: nn.Parameter) -> None:
        self.parameter, self.data = parameter, parameter.detach()
        self.requires_grad, self.grad = parameter.requires_grad, parameter.grad

    def restore(self) -> None:
        parameter = self.parameter
        if not parameter.is_meta and not _lies_as(parameter, self.data):
            parameter.data = self.data
        if parameter.requires_grad != self.requires_grad:
            parameter.requires_grad_(self.requires_grad)
        if parameter.grad is not self.grad:
            parameter.grad = self.grad


class _Owners:
    """Which parameters and buffers the modules have, by name."""

    def __init__(self, modules: list[nn.Module]) -> None:
        self.kept = [(entries, dict(entries)) for m in modules for entries in (m._parameters, m._buffers) if entries]

    def restore(self) -> None:
        for entries, before in self.kept:
            for name, tensor in before.items():
                if entries.get(name) is not tensor:
                    entries[name] = tensor  # type: ignore[assignment]


class _Buffer:
    """A buffer as it is now."""

    __slots__ = ("buffer", "copy", "data")

    def __init__(self, buffer: Tensor) -> None:
        self.buffer, self.data = buffer, buffer.detach()
        self.copy = self.data.clone()

    def restore(self) -> None:
        if not _lies_as(self.buffer, self.data):  # resized, or its memory exchanged for another's
            self.buffer.data = self.data
        if not _equal(self.buffer, self.copy):
            with torch.no_grad():
                self.buffer.copy_(self.copy)


def _buffers(modules: list[nn.Module]) -> list[_Buffer]:
    return [_Buffer(b) for m in modules for b in m._buffers.values() if b is not None and not b.is_meta]


class _Attributes:
    """Tensors that are plain attributes of modules: some forward passes leave one there, with a graph hanging on it."""

    def __init__(self, modules: list[nn.Module]) -> None:
        self.modules = modules
        self.kept = {(id(m), name): value for m in self.modules for name, value in _plain_tensors(m)}

    def restore(self) -> None:
        for module in self.modules:
            for name, value in _plain_tensors(module):
                before = self.kept.get((id(module), name))
                if before is not None:
                    module.__dict__[name] = before
                elif value.grad_fn is not None:
                    module.__dict__[name] = value.detach()


def _plain_tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    attributes = module.__dict__
    return [
        (name, attributes[name]) for name in attributes.keys() - _NO_TENSORS if isinstance(attributes[name], Tensor)
    ]


#: What every module has.
_NO_TENSORS = frozenset(nn.Module().__dict__)


class WriteGuard(TorchFunctionMode):
    """Copies a parameter just before an in-place function of this thread writes to it."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        super().__init__()
        self.owners: dict[int, list[nn.Parameter]] = {}
        self.copies: list[tuple[nn.Parameter, Tensor]] = []
        for parameter in parameters:
            if parameter.is_meta:
                continue
            memory = memory_of(parameter)
            if memory is not None:
                self.owners.setdefault(memory, []).append(parameter)
            else:  # a sparse one has no memory to know it by
                self.copies.append((parameter, parameter.detach().clone()))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.owners and is_in_place(None, func, args, kwargs):
            for target in written_by(func, args, kwargs):
                if not target.is_meta and (memory := memory_of(target)) is not None:
                    for parameter in self.owners.pop(memory, ()):
                        self.copies.append((parameter, parameter.detach().clone()))
        return func(*args, **kwargs)

    def restore(self) -> None:
        for parameter, copy in self.copies:
            if not _equal(parameter, copy):
                with torch.no_grad():
                    parameter.copy_(copy)


def _lies_as(value: Tensor, other: Tensor) -> bool:
    """Tell whether two tensors take the same memory in the same way; of sparse ones, whether they may."""
    if value.layout != torch.strided or other.layout != torch.strided:
        return value.layout == other.layout and value.shape == other.shape
    return (value.dtype, value.device) == (other.dtype, other.device) and value.is_set_to(other)


def _equal(value: Tensor, copy: Tensor) -> bool:
    """Compare bit by bit where values may be no numbers; NaN counts as itself."""
    value = value.detach()
    if value.layout != torch.strided:
        return all(map(_equal, _dense_parts(value), _dense_parts(copy)))
    if torch.equal(value, copy):
        return True
    return (
        value.is_floating_point()
        and torch.equal(value.nan_to_num(), copy.nan_to_num())
        and torch.equal(value.isnan(), copy.isnan())
    )


def _dense_parts(tensor: Tensor) -> tuple[Tensor, ...]:
    """Return the tensors that a sparse one consists of: torch compares no others."""
    if tensor.layout == torch.sparse_coo:
        return tensor._indices(), tensor._values()
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return tensor.crow_indices(), tensor.col_indices(), tensor.values()
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return tensor.ccol_indices(), tensor.row_indices(), tensor.values()
    return (tensor.to_dense(),)
