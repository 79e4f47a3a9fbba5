"""What two recordings of one model, on batches of different size, say of it: a program for any number of rows.

Whatever differs between the two other than by the batch size, and so might differ for further rows, is refused.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._pytree import tree_unflatten

from attribkit.engine.incremental.errors import NotReplayable
from attribkit.engine.incremental.record import Recording, Ref, Value

#: Constants up to this many elements are compared where the two recordings each made their own.
_COMPARED = 1 << 24


@dataclass(frozen=True)
class Times:
    """A number in a call's arguments that is this often the batch size."""

    factor: int


@dataclass
class Node:
    """An operation that depends on the input or on the number of rows.

    Attributes
    ----------
    op : str
        ``"call"`` for an operation as it was recorded, or the name of one that rewriting made.
    inputs : list of int
        The values it takes.
    outputs : list of int or None
        The values it makes.
    function, leaves, spec, single
        For calls: as recorded; values as `Ref`, constants as tensors, batch sizes as `Times`.
    params : dict
        For the others: what they need.
    """

    op: str
    inputs: list[int]
    outputs: list[int | None]
    function: Any = None
    leaves: list[Any] = field(default_factory=list)
    spec: Any = None
    single: bool = True
    params: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The operation's name without namespace and overload (``relu``); for others than calls their own."""
        return self.function._schema.name.rpartition("::")[2] if self.op == "call" else self.op

    def arguments(self) -> dict[str, Any]:
        """Return a call's arguments by name, defaults filled in."""
        args, kwargs = tree_unflatten(self.leaves, self.spec)
        found = {}
        for position, argument in enumerate(self.function._schema.arguments):
            default = argument.default_value if argument.has_default_value() else None
            found[argument.name] = args[position] if position < len(args) else kwargs.get(argument.name, default)
        return found


@dataclass
class Info:
    """What is known of a value.

    Attributes
    ----------
    shape : tuple of int
        Its shape for one row.
    dtype : torch.dtype
    stride : tuple of int
        Its strides in the recording.
    rows : bool
        Whether its first dimension is the rows, one for each.
    axes : (int, int) or None
        Where the image's rows and columns are, for values that are maps of it.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    stride: tuple[int, ...]
    rows: bool
    axes: tuple[int, int] | None = None


@dataclass
class Graph:
    """A program: nodes in order, what is known of the values they make, and what it returns."""

    nodes: list[Node]
    values: dict[int, Info]
    returns: list[Any]
    spec: Any

    def consumers(self) -> dict[int, list[Node]]:
        """Return the nodes that take each value."""
        found: dict[int, list[Node]] = {index: [] for index in self.values}
        for node in self.nodes:
            for index in node.inputs:
                found[index].append(node)
        return found

    def results(self) -> list[int]:
        """Return the values that are returned."""
        return [leaf.index for leaf in self.returns if isinstance(leaf, Ref)]

    def prune(self) -> None:
        """Drop what nothing returned depends on."""
        needed = set(self.results())
        kept = []
        for node in reversed(self.nodes):
            if any(output in needed for output in node.outputs):
                needed.update(node.inputs)
                kept.append(node)
        self.nodes = kept[::-1]
        self.values = {index: info for index, info in self.values.items() if index in needed or index == 0}


#: Batch sizes of the two recordings. One row alone is special to torch: reshaping copies less, matrices fold.
ROWS = (2, 3)


def compare(one: Recording, many: Recording) -> Graph:
    """Return the program that two recordings agree on.

    Parameters
    ----------
    one, many
        Recordings of the same function on ``ROWS`` rows; the first row of the first is the clean image.

    Raises
    ------
    NotReplayable
        They differ otherwise than by the batch size.
    """
    if len(one.calls) != len(many.calls) or one.spec != many.spec:
        raise NotReplayable("the forward pass takes another way for other images")
    reader = _Comparison(one, many)
    nodes = []
    for call, twin in zip(one.calls, many.calls, strict=True):
        if call.function is not twin.function or call.spec != twin.spec or call.outputs != twin.outputs:
            raise NotReplayable("the forward pass takes another way for other images")
        leaves = [reader.leaf(a, b) for a, b in zip(call.leaves, twin.leaves, strict=True)]
        inputs = list(dict.fromkeys(leaf.index for leaf in leaves if isinstance(leaf, Ref)))
        if not inputs and not any(isinstance(leaf, Times) for leaf in leaves):
            continue  # a constant
        if any(output is not None and one.values[output].mutated for output in call.outputs):
            raise NotReplayable("a tensor that depends on the batch size is written to in place")
        for output in call.outputs:
            if output is not None:
                reader.vary(output)
        nodes.append(Node("call", inputs, list(call.outputs), call.function, leaves, call.spec, call.single))
    returns = [reader.leaf(a, b, returned=True) for a, b in zip(one.leaves, many.leaves, strict=True)]
    graph = Graph(nodes, reader.values, returns, one.spec)
    graph.prune()
    if not graph.results():
        raise NotReplayable("the forward pass returns nothing that depends on the image")
    return graph


class _Comparison:
    def __init__(self, one: Recording, many: Recording) -> None:
        self.one, self.many = one, many
        self.values: dict[int, Info] = {}
        self.constants: set[int] = set()
        self.vary(0)
        if not self.values[0].rows:
            raise NotReplayable("the image has no dimension of rows")
        self.values[0].axes = (2, 3)

    def vary(self, index: int) -> None:
        a, b = self.one.values[index], self.many.values[index]
        if len(a.shape) != len(b.shape) or a.dtype != b.dtype:
            raise NotReplayable("a value changes its kind with the number of rows")
        shape, grown = [], []
        for left, right in zip(a.shape, b.shape, strict=True):
            factor = _factor(left, right)
            if left != right and factor is None:
                raise NotReplayable("a shape depends on the number of rows in a way of its own")
            grown.append(factor is not None)
            shape.append(left if factor is None else factor)
        rows = sum(grown) == 1 and grown[0] and shape[0] == 1
        self.values[index] = Info(tuple(shape), a.dtype, a.stride, rows)

    def leaf(self, a: Any, b: Any, *, returned: bool = False) -> Any:
        if isinstance(a, Ref) and isinstance(b, Ref):
            if a.index != b.index:
                raise NotReplayable("the forward pass takes another way for other images")
            if a.index in self.values:
                return a
            left, right = self.one.values[a.index], self.many.values[a.index]
            self._same(a.index, left, right)
            return left.held.detach()  # a parameter may know its model, which a program must not hold
        factor = _factor(a, b)
        if factor is not None and not returned:
            return Times(factor)
        if type(a) is not type(b):
            raise NotReplayable("the forward pass takes another way for other images")
        if a is b or bool(a == b) or (isinstance(a, float) and a != a and b != b):
            return a
        if returned:
            return a
        raise NotReplayable(f"an argument changes from {a!r} to {b!r} with the images")

    def _same(self, index: int, a: Value, b: Value) -> None:
        if index in self.constants or a.held is b.held:
            return
        left, right = a.held, b.held
        if left.data_ptr() == right.data_ptr() and left.shape == right.shape and left.stride() == right.stride():
            return  # two views of one tensor that outlives the forward pass
        if left.shape != right.shape or left.dtype != right.dtype or left.numel() > _COMPARED:
            raise NotReplayable("a tensor made during the forward pass changes with the images")
        nan = torch.nan_to_num if left.is_floating_point() else lambda t: t
        if not torch.equal(nan(left), nan(right)):
            raise NotReplayable("a tensor made during the forward pass changes with the images")
        self.constants.add(index)


def _factor(a: Any, b: Any) -> int | None:
    """Return how often two numbers are the recordings' batch sizes; None where they are not."""
    if type(a) is not int or type(b) is not int or a == b or a % ROWS[0] or a // ROWS[0] * ROWS[1] != b:
        return None
    return a // ROWS[0]
