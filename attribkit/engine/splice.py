"""Splicing an operation out of the model's graph: it runs in a graph of its own, and an inverse layer joins the two."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from attribkit.engine.inverse import InverseLayer, Kept, Pass, SiteCall, attach, edges_of, source
from attribkit.engine.ops import SINGLE_INPUT, Operation
from attribkit.errors import MethodError

if TYPE_CHECKING:
    from attribkit.engine.lean.record import Lean
    from attribkit.engine.lean.step import Step


@dataclass
class Splice:
    """An operation about to run on aliases of its inputs, in a graph of its own."""

    call: SiteCall
    inputs: tuple[Tensor, ...]
    extras: tuple[Tensor, ...]
    aliases: tuple[Tensor, ...]
    sources: tuple[Any, ...]
    versions: tuple[int, ...]


@dataclass(slots=True)
class FunctionCall:
    """A call of a known function, about to run."""

    operation: Operation
    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    _bound: dict[str, Any] | None = None

    @property
    def bound(self) -> dict[str, Any]:
        """The arguments by name, defaults filled in; not to be changed."""
        if self._bound is None:
            self._bound = self.operation.bind(self.args, self.kwargs)
        return self._bound

    def run(self) -> Any:
        """Run it as it is."""
        return self.function(*self.args, **self.kwargs)


class Splicer:
    """Splices the operations of one walk and guards the tensors kept for their inverse layers."""

    def __init__(self, lean: Lean | None = None, *, keeps_graphs: bool = False) -> None:
        self.lean = lean
        self.way = Pass(keeps_graphs=keeps_graphs)
        self.attached = False  # whether any operation has been spliced out
        self._anchor = torch.zeros((), requires_grad=True)
        self._kept: dict[int, list[Kept]] = {}

    def clear(self) -> None:
        """Forget the kept tensors: from here on nothing can change them unseen."""
        self._kept.clear()

    def run(
        self, name: str, kind: str, module: nn.Module | None, layer: InverseLayer | None, call: FunctionCall
    ) -> tuple[Any, bool]:
        """Run a function's call, spliced where it has an inverse layer and a signal can pass.

        Returns
        -------
        output
            What the function returns.
        attached : bool
            Whether the inverse layer took hold.
        """
        if self.lean is not None and (layer is None or (kind in SINGLE_INPUT and not layer.needs)):
            step = self.lean.step(call, carries=layer is not None)
            if step is not None:
                return self._run_lean(name, kind, module, layer, call, step), layer is not None
        if layer is None:
            self.rescue(call.operation, call.function, call.args, call.kwargs)
            return call.run(), False
        leaves, spec = tree_flatten((call.args, call.kwargs))
        record = _Parameters(call.operation, leaves, spec)
        pending, aliases = self.prepare(name, kind, module, layer, leaves, record.by_name)
        # only now: where the call works in place, its own inputs are among what was kept
        self.rescue(call.operation, call.function, call.args, call.kwargs)
        if pending is None:
            return call.run(), False
        record.forget(pending.inputs)
        operation, function = call.operation, call.function
        args, kwargs = tree_unflatten(aliases, spec)
        if kind != "max_pool":
            return self.finish(pending, function(*args, **kwargs))
        result, switches, pair = pool_with_switches(operation, function, args, kwargs)
        pending.call._switches = lambda: switches
        pending.call.spatial_dims = _spatial_dims(operation)
        return self.finish(pending, (result, switches) if pair else result)

    def _run_lean(
        self, name: str, kind: str, module: nn.Module | None, layer: InverseLayer | None, call: FunctionCall, step: Step
    ) -> Any:
        """Run a function's call with a lean step, whose one tensor input is the first argument."""
        assert self.lean is not None
        self.rescue(call.operation, call.function, call.args, call.kwargs)
        if layer is None:
            return self.lean.apply(step, call)
        with torch._C.DisableTorchFunction():  # our own looks at tensors are no functions of the model's
            x = call.args[0]
            site = SiteCall(name, kind, module, layer, _others_by_name(call, x), self.way)
            site.input_shapes = (x.shape,)
        if kind == "max_pool":
            site.spatial_dims = _spatial_dims(call.operation)
        return self.lean.apply(step, call, site)

    def prepare(
        self,
        name: str,
        kind: str,
        module: nn.Module | None,
        layer: InverseLayer,
        leaves: list[Any],
        params: Callable[[], dict[str, Any]],
    ) -> tuple[Splice | None, list[Any]]:
        """Put aliases, each at the start of a graph of its own, in place of the tensors that carry a signal."""
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]
        if not torch.is_grad_enabled() or not any(t.requires_grad for t in tensors) or is_transformed():
            return None, leaves
        if kind in SINGLE_INPUT:
            inputs, rest = tensors[:1], tensors[1:]
        else:
            inputs, rest = [t for t in tensors if not isinstance(t, nn.Parameter)], []
        inputs = list({id(t): t for t in inputs}.values()) if kind == "other" else inputs
        # parameters are leaves: only what was itself computed from the input (a routed weight, say) takes a signal
        extras = [t for t in rest if t.requires_grad and not t.is_leaf]
        if not extras and not any(t.requires_grad and not isinstance(t, nn.Parameter) for t in inputs):
            return None, leaves
        self.attached = True
        call = SiteCall(name, kind, module, layer, params, self.way)
        call.input_shapes = tuple(t.shape for t in inputs)
        if "input" in layer.needs:
            call._inputs = tuple(self._keep(t) for t in inputs)
        wanted = [*inputs, *extras]
        aliases = [source(t, self._anchor) for t in wanted]
        queue: dict[int, list[Tensor]] = {}
        for tensor, alias in zip(wanted, aliases, strict=True):
            queue.setdefault(id(tensor), []).append(alias)
        replaced = []
        for leaf in leaves:
            waiting = queue.get(id(leaf)) if isinstance(leaf, Tensor) else None
            replaced.append((waiting.pop(0) if len(waiting) > 1 else waiting[0]) if waiting else leaf)
        pending = Splice(
            call,
            tuple(inputs),
            tuple(extras),
            tuple(aliases),
            edges_of(tuple(aliases)),
            tuple(t._version for t in inputs),
        )
        return pending, replaced

    def finish(self, pending: Splice, output: Any, *, whole: bool = False) -> tuple[Any, bool]:
        """Return the output with its differentiable tensors in the model's graph, and whether there are any.

        Raises
        ------
        MethodError
            The operation changes an input in place and returns something else, or hides its tensors in an object.
        """
        leaves, spec = tree_flatten(output)
        places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.requires_grad]
        if not places:
            if whole and not any(isinstance(leaf, Tensor) for leaf in leaves):
                raise MethodError(
                    f"{pending.call.layer!r} is attached to {pending.call.name!r}, which returns a "
                    f"{type(output).__name__} with no tensor in sight; attach to the sites inside it"
                )
            return output, False
        results = tuple(leaves[i] for i in places)
        changed = [t._version != v for t, v in zip(pending.inputs, pending.versions, strict=True)]
        in_place = len(results) == 1 and results[0] is pending.aliases[0]
        if any(changed) and (not in_place or any(changed[1:])):
            raise MethodError(
                f"{pending.call.layer!r} is attached to {pending.call.name!r}, which changes an input in place and "
                "returns another tensor; attach to the sites inside it"
            )
        if "output" in pending.call.layer.needs:
            pending.call._output = self._keep(results[0])
        joined = attach(pending.call, pending.inputs, pending.extras, pending.sources, results, in_place and changed[0])
        for i, tensor in zip(places, joined, strict=True):
            leaves[i] = tensor
        return tree_unflatten(leaves, spec), True

    def _keep(self, tensor: Tensor) -> Kept:
        kept = Kept(tensor)
        memory = memory_of(tensor)
        if memory is not None:
            self._kept.setdefault(memory, []).append(kept)
        return kept

    def rescue(self, operation: Operation | None, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Copy kept values that an in-place operation is about to change."""
        if not self._kept or not is_in_place(operation, function, args, kwargs):
            return
        for target in written_by(function, args, kwargs):
            memory = memory_of(target)
            for kept in self._kept.pop(memory, ()) if memory is not None else ():
                kept.rescue()


class _Input:
    """Stands for an input in the record of a call's other arguments."""


_INPUT = _Input()


def _holds_input(value: Any) -> bool:
    return value is _INPUT or (isinstance(value, (tuple, list)) and any(map(_holds_input, value)))


class _Parameters:
    """The record of a call's arguments other than its inputs."""

    def __init__(self, operation: Operation, leaves: list[Any], spec: Any) -> None:
        self._operation, self._leaves, self._spec = operation, leaves, spec

    def forget(self, inputs: Iterable[Tensor]) -> None:
        """Let go of the inputs: keeping them alive is what `needs` is for."""
        carried = {id(tensor) for tensor in inputs}
        self._leaves = [
            _INPUT if id(leaf) in carried else leaf.detach() if isinstance(leaf, Tensor) else leaf
            for leaf in self._leaves
        ]

    def by_name(self) -> dict[str, Any]:
        """Return what is left."""
        bound = self._operation.bind(*tree_unflatten(self._leaves, self._spec))
        return {key: value for key, value in bound.items() if not _holds_input(value)}


def _others_by_name(call: FunctionCall, x: Tensor) -> Callable[[], dict[str, Any]]:
    """Return what returns the arguments other than the input, tensors and lists of settings as they are now.

    Only for calls whose tensors are arguments themselves, none of them inside a list.
    """

    def kept(value: Any) -> Any:
        return _INPUT if value is x else value.detach() if isinstance(value, Tensor) else _copied(value)

    operation, args = call.operation, tuple(map(kept, call.args))
    kwargs = {key: kept(value) for key, value in call.kwargs.items()}

    def by_name() -> dict[str, Any]:
        bound = operation.bind(args, kwargs)
        return {key: _copied(value) for key, value in bound.items() if value is not _INPUT}

    return by_name


def _copied(value: Any) -> Any:
    """Return a list of the same elements in a list's place, all else as it is."""
    return list(value) if isinstance(value, list) else value


def _spatial_dims(operation: Operation) -> int:
    return int(operation.name.split("_with")[0][-2])


def module_params(module: nn.Module) -> dict[str, Any]:
    """Return the parameters, buffers and plain settings (stride, eps, …) of a module that is a site as a whole."""
    settings = {key: value for key, value in vars(module).items() if not key.startswith("_") and key != "training"}
    tensors = {key: value.detach() for key, value in (*module.named_parameters(), *module.named_buffers())}
    return {**settings, **tensors}


def first_tensor(tree: Any) -> Tensor | None:
    """Return the first floating-point tensor of nested tuples, lists and dicts, None where there is none."""
    if isinstance(tree, Tensor):
        return tree if tree.is_floating_point() else None
    parts: Any
    if isinstance(tree, (list, tuple)):
        parts = tree
    elif isinstance(tree, dict):
        parts = tree.values()
    else:
        return None
    for part in parts:
        found = first_tensor(part)
        if found is not None:
            return found
    return None


def function_name(function: Any) -> str:
    """Return a torch function's name; that of the property where the function reads one (``Tensor.mT``)."""
    name = getattr(function, "__name__", "")
    if name == "__get__":
        return getattr(getattr(function, "__self__", None), "__name__", name)
    return str(name)


_in_place_by_name: dict[Any, bool] = {}


def is_in_place(operation: Operation | None, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Tell whether this call of a torch function may change its first argument."""
    by_name = _in_place_by_name.get(function)
    if by_name is None:
        name = getattr(function, "__name__", "")
        dunder = name.startswith("__i") or name == "__setitem__"
        by_name = _in_place_by_name[function] = dunder if name.endswith("__") else name.endswith("_")
    if by_name or (kwargs and ("out" in kwargs or kwargs.get("inplace"))):
        return True
    return operation is not None and operation.may_be_in_place and bool(operation.bind(args, kwargs).get("inplace"))


def written_by(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """Return the tensors that a call of an in-place function may write to: its first, those of `out`, or any."""
    out = kwargs.get("out")
    if getattr(function, "__name__", "").startswith(("_foreach_", "_fused_")):
        return [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
    if out is not None:
        return [leaf for leaf in tree_flatten(out)[0] if isinstance(leaf, Tensor)]
    first = first_tensor((args, kwargs))
    return [] if first is None else [first]


def is_transformed() -> bool:
    """Tell whether a function is being transformed by torch.func (grad, vmap, …), in which no inverse layer can act."""
    functorch: Any = torch._C._functorch
    return functorch.peek_interpreter_stack() is not None


def memory_of(tensor: Tensor) -> int | None:
    """Return where a tensor's memory begins; None for one that has none of its own, sparse or wrapped by functorch."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):
        return None


def pool_with_switches(
    operation: Operation, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Tensor, Tensor, bool]:
    """Run a max pool so that it tells its switches; say whether the caller's call returns them too."""
    bound = operation.bind(args, kwargs)
    if "return_indices" not in bound:  # an overload whose arguments have no names: pairs already
        values, switches = function(*args, **kwargs)
        return values, switches, True
    pair = bool(bound.pop("return_indices")) or operation.name.endswith("_with_indices")
    pair = pair or (isinstance(function, type(torch.relu)) and "adaptive" in operation.name)  # torch.adaptive_max_pool*
    values, switches = getattr(F, operation.name.removesuffix("_with_indices"))(**bound, return_indices=True)
    return values, switches, pair
