"""Which pixels each element of each tensor can depend on, followed through one forward pass.

Beside every tensor that comes from the input runs its *reach*: for each element the bounding box of the pixels that it
can depend on. A function that moves elements moves their boxes; one that combines elements gives each result the box
around its operands' boxes. Weights count as different from zero, and a max pool's window as depending on all of its
elements, whatever the values. An operation that is not known gives all its results the box around everything it was
given, and is listed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map
from torch.utils.weak import WeakTensorKeyDictionary

from attribkit.engine.ops import Operation, Vocabulary
from attribkit.engine.splice import function_name, is_in_place
from attribkit.features._influence_rules import NEW, NOTHING, carries, rule_for, tensors_of

#: Of each element −top, −left, bottom and right (exclusive), so that the box around boxes is the maximum of each.
Reach = tuple[Tensor, ...]


class Influence(TorchFunctionMode):
    """Follows the reach of every tensor while it is active.

    Parameters
    ----------
    image
        The model's input [1, C, H, W]: element (y, x) reaches pixel (y, x).
    vocabulary
        The operations known.
    constants
        Tensors that do not come from the input: the model's parameters and buffers.
    """

    def __init__(self, image: Tensor, vocabulary: Vocabulary, constants: list[Tensor]) -> None:
        super().__init__()
        self._functions = vocabulary.functions
        self._reach = WeakTensorKeyDictionary()
        self._constants = {id(tensor) for tensor in constants}
        self.unknown: dict[str, None] = {}
        height, width = image.shape[-2:]
        self.image = (int(height), int(width))
        rows = torch.arange(height, dtype=torch.float32, device=image.device)[:, None]
        columns = torch.arange(width, dtype=torch.float32, device=image.device)[None]
        parts = (-rows, -columns, rows + 1, columns + 1)
        self._reach[image] = tuple(part.expand(image.shape).contiguous() for part in parts)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = function_name(func).strip("_")
        operation = self._functions.get(func)
        changes = is_in_place(operation, func, args, kwargs)
        # read before: an operation in place has another reach afterwards, and some change a tensor's shape
        operands = self._operands(args, kwargs)
        output = func(*args, **kwargs)
        if not tensors_of(output) and name != "setitem":
            return output
        self._follow(name, func, operation, args, kwargs, output, operands, changes)
        return output

    def of(self, tensor: Tensor) -> Reach | None:
        """Return a tensor's reach; None for one that does not come from the input."""
        found: Reach | None = self._reach.get(tensor)  # type: ignore[no-untyped-call]
        if found is None and id(tensor) not in self._constants and tensor.grad_fn is not None:
            # made where no function mode looks (a C++ extension, an autograd.Function)
            self.unknown.setdefault(type(tensor.grad_fn).__name__.removesuffix("Backward"))
            found = self._everything(tensor)
        return found

    def _everything(self, tensor: Tensor) -> Reach:
        height, width = self.image
        return tuple(torch.full(tensor.shape, v, device=tensor.device) for v in (0.0, 0.0, float(height), float(width)))

    def _operands(self, args: Any, kwargs: Any) -> dict[int, Reach]:
        return {id(t): r for t in tensors_of((args, kwargs)) if carries(t) and (r := self.of(t)) is not None}

    def _follow(
        self,
        name: str,
        func: Any,
        operation: Operation | None,
        args: Any,
        kwargs: Any,
        output: Any,
        operands: dict[int, Reach],
        changes: bool,
    ) -> None:
        """Note the reach of what a function returned."""
        if name == "setitem":
            self._set_item(args, operands)
            return
        results = [t for t in tensors_of(output) if carries(t)]
        if not operands or name in NEW:
            for tensor in results:
                self._constants.add(id(tensor))
                self._reach[tensor] = tuple(torch.full((), NOTHING).expand(tensor.shape) for _ in range(4))
            return
        reaches: list[Reach] | None = None
        rule = rule_for(name, operation)
        if rule is not None:
            try:
                parts = [rule(self._arguments(args, kwargs, operands, i), results) for i in range(4)]
            except (RuntimeError, TypeError, ValueError, KeyError, IndexError, NotImplementedError):
                pass  # a form of the call that the rule does not know
            else:
                found = [
                    tuple(_fitted(part[i], tensor) for part in parts if i < len(part))
                    for i, tensor in enumerate(results)
                ]
                if all(len(reach) == 4 and all(p is not None for p in reach) for reach in found):
                    reaches = found  # type: ignore[assignment]
        if reaches is None:
            self.unknown.setdefault(name)
            hull = [torch.stack([reach[i].amax() for reach in operands.values() if reach[i].numel()]) for i in range(4)]
            reaches = [tuple(bound.amax().expand(t.shape) for bound in hull) for t in results]
        for tensor, reach in zip(results, reaches, strict=True):
            self._reach[tensor] = reach
            base = tensor._base
            if changes and base is not None and carries(base):
                around = [torch.maximum(b, r.amax()) for b, r in zip(self.of(base) or reach, reach, strict=True)]
                self._reach[base] = tuple(bound.expand(base.shape) for bound in around)

    def _set_item(self, args: Any, operands: dict[int, Reach]) -> None:
        target, index, value = args
        old = operands.get(id(target)) or tuple(
            torch.full(target.shape, NOTHING, device=target.device) for _ in range(4)
        )
        new = operands.get(id(value)) if isinstance(value, Tensor) else None
        changed = []
        for i, bound in enumerate(old):
            copy = bound.clone()
            copy[index] = new[i] if new is not None else NOTHING
            changed.append(copy)
        self._reach[target] = tuple(changed)

    def _arguments(self, args: Any, kwargs: Any, operands: dict[int, Reach], bound: int) -> tuple[Any, Any]:
        """Return a call's arguments with one bound of the reach in place of each tensor."""

        def replaced(value: Any) -> Any:
            if not isinstance(value, Tensor) or not carries(value):
                return value
            reach = operands.get(id(value))
            return reach[bound] if reach is not None else torch.full(value.shape, NOTHING, device=value.device)

        return tree_map(replaced, (args, kwargs))  # type: ignore[no-any-return]


def _fitted(part: Tensor, tensor: Tensor) -> Tensor | None:
    """Return a bound in the shape of its tensor; None where it does not fit."""
    if part.shape == tensor.shape:
        return part
    try:
        return part.expand(tensor.shape)
    except RuntimeError:
        return None
