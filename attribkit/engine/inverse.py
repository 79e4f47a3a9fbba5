"""Inverse layers: what carries a signal back through one site, and how it is put into the model's graph."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from attribkit.errors import MethodError

if TYPE_CHECKING:
    from torch import nn

    from attribkit.engine.lean.step import Step

Signal = Tensor | tuple[Tensor | None, ...]


class InverseLayer:
    """Carries a signal back through one operation in place of the operation's derivative.

    Subclasses define `carry`; one instance serves every site it is attached to and keeps nothing between calls.

    Attributes
    ----------
    needs : frozenset of str
        What of the way up must be kept for the way back: a subset of ``{"input", "output"}``. Anything else about the
        site (``plain``, ``switches``, ``params``, ``module``) is always there.
    batched : bool
        False for a layer that branches on the signal's values or writes a signal into a tensor made without it; it
        is then called once for each signal.
    signal_only : bool
        True for a layer that never asks for ``site.plain``: the operation's derivative is then not recorded.
    ordinary : bool
        True for a layer that computes the ordinary derivative by another route (unpooling through switches): on its
        own it does not make a map differ from the plain gradient.
    observer : bool
        True for a layer that only watches: it hands on ``site.plain(signal)``, or nothing at all where what lies below
        is of no interest. Its site does not count as rewritten.
    """

    needs: ClassVar[frozenset[str] | set[str]] = frozenset()
    batched: ClassVar[bool] = True
    signal_only: ClassVar[bool] = False
    ordinary: ClassVar[bool] = False
    observer: ClassVar[bool] = False

    def carry(self, signal: Tensor, site: SiteCall) -> Signal:
        """Return ``signal``, given at the site's output, at the site's input.

        Parameters
        ----------
        signal
            Tensor of the output's shape.
        site
            The operation's call: see `SiteCall`.

        Returns
        -------
        Floating tensor of the input's shape, or a tuple of them, one for each tensor input (None: no signal).
        """
        raise NotImplementedError(f"{type(self).__name__} does not define carry(signal, site)")

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class Kept:
    """A tensor kept from the way up, safe from what the model does to it in place afterwards."""

    __slots__ = ("tensor", "version")

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.detach()
        self.version = self.tensor._version

    def rescue(self) -> None:
        """Copy the value: an in-place operation is about to change it."""
        if self.tensor._version == self.version:
            self.tensor = self.tensor.clone()
            self.version = self.tensor._version

    def get(self, what: str) -> Tensor:
        """Return the kept value; `MethodError` when something the walk could not see has changed it."""
        if self.tensor._version != self.version:
            raise MethodError(f"{what} was changed in place by an operation that the walk could not see")
        return self.tensor


class Pass:
    """A way back: ours, or for a while the model's own, when it differentiates on its way up.

    Attributes
    ----------
    models_own : bool
        Whether the model is differentiating just now: then every operation has its ordinary derivative.
    keeps_graphs : bool
        Whether every operation keeps its own graph for that, also where its inverse layer never asks for it.
    """

    __slots__ = ("keeps_graphs", "models_own")

    def __init__(self, *, keeps_graphs: bool = False) -> None:
        self.models_own = False
        self.keeps_graphs = keeps_graphs


class SiteCall:
    """One call of one operation, as an inverse layer sees it.

    Attributes
    ----------
    name : str
        The site's name.
    kind : str
        The op kind.
    module : torch.nn.Module or None
        The module that is this operation; None for a functional call.
    params : dict
        The call's arguments by name other than its tensor inputs (weight, bias, stride, …).
    spatial_dims : int
        Max pools: how many trailing dimensions the windows have.
    input_shapes : tuple of torch.Size
        Shapes of the tensor inputs.
    """

    def __init__(
        self,
        name: str,
        kind: str,
        module: nn.Module | None,
        layer: InverseLayer,
        params: Callable[[], dict[str, Any]],
        way: Pass,
    ) -> None:
        self.name = name
        self.kind = kind
        self.module = module
        self.layer = layer
        self.spatial_dims = 0
        self.input_shapes: tuple[torch.Size, ...] = ()
        self._params = params
        self._way = way
        self._inputs: tuple[Kept, ...] | None = None
        self._output: Kept | None = None
        self._sources: tuple[GradientEdge, ...] = ()
        self._extras: tuple[GradientEdge, ...] = ()
        self._results: tuple[GradientEdge, ...] = ()
        self._switches: Callable[[], Tensor | None] | None = None
        self._back: Callable[[Tensor], Tensor] | None = None

    def __repr__(self) -> str:
        return f"<site {self.name!r}, {self.kind}>"

    @property
    def params(self) -> dict[str, Any]:
        """The call's other arguments by name, defaults filled in where the function's signature is known."""
        return self._params()

    @property
    def switches(self) -> Tensor | None:
        """Max pools: flat index of each window's maximum within the input's spatial dimensions, of the output's shape.

        LongTensor, None for all other operations. They may be kept as smaller integers: ask once.
        """
        return self._switches() if self._switches is not None else None

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The tensor inputs (for in-place operations the values before); the layer must declare ``needs``."""
        if self._inputs is None:
            raise self._undeclared("input")
        return tuple(kept.get(f"the input of site {self.name!r}") for kept in self._inputs)

    @property
    def input(self) -> Tensor:
        """The first tensor input."""
        return self.inputs[0]

    @property
    def output(self) -> Tensor:
        """The operation's output; the layer must declare ``needs``."""
        if self._output is None:
            raise self._undeclared("output")
        return self._output.get(f"the output of site {self.name!r}")

    def plain(self, signal: Tensor) -> Signal:
        """Return the signal carried back by the operation's ordinary derivative.

        Parameters
        ----------
        signal
            Tensor of the output's shape.

        Returns
        -------
        Tensor for an operation with one tensor input, else a tuple, one for each (None where the derivative is
        identically zero).
        """
        if self._back is not None:
            with torch._C.DisableTorchFunction():
                return self._back(signal)
        if not self._results:
            raise MethodError(
                f"{self.layer!r} asked for the ordinary derivative at {self.name!r} but declares signal_only = True"
            )
        grads = self._derivative(0, signal, self._sources)
        return grads[0] if len(grads) == 1 and grads[0] is not None else grads

    def _derivative(self, output: int, signal: Tensor, edges: tuple[GradientEdge, ...]) -> tuple[Tensor | None, ...]:
        return torch.autograd.grad(self._results[output], edges, signal, retain_graph=True, allow_unused=True)

    def carry_all(self, signals: tuple[Tensor | None, ...]) -> list[Tensor | None]:
        """Carry the signals of all outputs back to the inputs and to parameters computed from the input.

        The layer carries the first output's signal; that of any other output (attention weights handed out beside the
        result) and the way to computed parameters follow the ordinary derivative.

        Raises
        ------
        MethodError
            The layer returned something that does not fit the site's inputs.
        """
        if self._way.models_own:
            return self._ordinary(signals)
        total: list[Tensor | None] = [None] * (len(self._sources) + len(self._extras))
        if signals[0] is not None:
            extras = self._derivative(0, signals[0], self._extras) if self._extras else ()
            total = [*self._carry(signals[0]), *extras]
        for output, signal in enumerate(signals[1:], 1):
            if signal is not None:
                total = _summed(total, self._derivative(output, signal, self._sources + self._extras))
        return total

    def _ordinary(self, signals: tuple[Tensor | None, ...]) -> list[Tensor | None]:
        """Carry the signals of all outputs back by the ordinary derivative, as if no layer was attached."""
        edges = self._sources + self._extras
        total: list[Tensor | None] = [None] * len(edges)
        for output, signal in enumerate(signals):
            if signal is not None:
                total = _summed(total, self._derivative(output, signal, edges))
        return total

    @contextmanager
    def step_of(self, step: Step, kept: tuple[Tensor, ...]) -> Iterator[None]:
        """Take the ordinary derivative and the switches from a lean step, while a signal is carried."""
        if not self.layer.signal_only:
            self._back = functools.partial(step.back, kept=kept)
        self._switches = functools.partial(step.switches, kept)
        try:
            yield
        finally:
            self._back = self._switches = None

    def _carry(self, signal: Tensor) -> tuple[Tensor | None, ...]:
        version = signal._version
        carried = self.layer.carry(signal, self)
        if signal._version != version:
            raise MethodError(
                f"{self.layer!r}.carry at site {self.name!r} changed the signal in place: return a new one"
            )
        if carried is None:
            raise MethodError(f"{self.layer!r}.carry at site {self.name!r} returned nothing")
        parts = carried if isinstance(carried, tuple) else (carried,)
        if len(parts) != len(self.input_shapes):
            raise MethodError(
                f"{self.layer!r}.carry at site {self.name!r} returned {len(parts)} signals for "
                f"{len(self.input_shapes)} tensor inputs"
            )
        for part, shape in zip(parts, self.input_shapes, strict=True):
            if part is not None and (not isinstance(part, Tensor) or part.shape != shape):
                got = tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__
                raise MethodError(
                    f"{self.layer!r}.carry at site {self.name!r} ({self.kind}) returned {got}, "
                    f"but the site's input has shape {tuple(shape)}"
                )
            # any floating dtype will do, for autograd casts it: under autocast a signal may have the output's, and what
            # a layer hands on is to have the input's; numbers of other dtypes it would cast as quietly
            if part is not None and not part.is_floating_point():
                raise MethodError(
                    f"{self.layer!r}.carry at site {self.name!r} ({self.kind}) returned a tensor of {part.dtype}, "
                    "but a signal has a floating dtype"
                )
        return parts

    def _undeclared(self, what: str) -> MethodError:
        return MethodError(
            f"{self.layer!r} reads site.{what} at {self.name!r} but does not declare it: set needs = {{{what!r}}}"
        )


def _summed(these: Sequence[Tensor | None], those: Sequence[Tensor | None]) -> list[Tensor | None]:
    return [a if b is None else b if a is None else a + b for a, b in zip(these, those, strict=True)]


class _Source(torch.autograd.Function):
    """An alias of a tensor that starts a graph of its own, without keeping the tensor itself alive."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, tensor: Tensor) -> Tensor:
        return tensor.detach()

    @staticmethod
    def backward(ctx: Any, *signals: Tensor) -> tuple[None, None]:
        return None, None


class _Carry(torch.autograd.Function):
    """Puts an operation's results into the model's graph with `SiteCall.carry_all` for their derivative."""

    @staticmethod
    def forward(ctx: Any, call: SiteCall, results: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.call, ctx.results = call, results
        ctx.set_materialize_grads(False)
        return tuple(result.detach() for result in tensors[:results])

    @staticmethod
    def backward(ctx: Any, *signals: Tensor | None) -> tuple[Any, ...]:
        return (None, None, *([None] * ctx.results), *ctx.call.carry_all(signals))


class _CarryInPlace(torch.autograd.Function):
    """The same for an operation that has already changed its first input in place and returned it."""

    @staticmethod
    def forward(ctx: Any, call: SiteCall, changed: Tensor, *others: Tensor) -> Tensor:
        ctx.call = call
        ctx.mark_dirty(changed)
        return changed

    @staticmethod
    def backward(ctx: Any, *signals: Tensor) -> tuple[Any, ...]:
        return (None, *ctx.call.carry_all(signals))


def source(tensor: Tensor, anchor: Tensor) -> Tensor:
    """Return an alias of ``tensor`` at the start of a graph of its own."""
    return _Source.apply(anchor, tensor)  # type: ignore[no-any-return]


def edges_of(tensors: tuple[Tensor, ...]) -> tuple[GradientEdge, ...]:
    """Return the places in the graph where these tensors' gradients arrive."""
    return tuple(get_gradient_edge(tensor) for tensor in tensors)


def attach(
    call: SiteCall,
    inputs: tuple[Tensor, ...],
    extras: tuple[Tensor, ...],
    sources: tuple[GradientEdge, ...],
    results: tuple[Tensor, ...],
    changed: bool,
) -> tuple[Tensor, ...]:
    """Return ``results`` as part of the model's graph, with the call's inverse layer for their derivative.

    Parameters
    ----------
    call
        The site's call; its ``input_shapes``, ``switches`` and kept tensors are set already.
    inputs, extras
        The tensors of the model's graph that the signal goes to: the site's inputs, then parameters that were
        computed from the input themselves.
    sources
        Where their gradients arrive in the operation's own graph, in the same order.
    results
        The operation's outputs, in its own graph.
    changed
        Whether the operation changed ``inputs[0]`` in place and returned it, alone.
    """
    if not call.layer.signal_only or extras or len(results) > 1 or call._way.keeps_graphs:
        call._results = edges_of(results)
    call._sources = sources[: len(inputs)]
    call._extras = sources[len(inputs) :]
    if changed:
        # the values are already there: marking the tensor as changed must not outdate what the operation saved of them
        with torch.autograd._unsafe_preserve_version_counter(inputs[0]):  # type: ignore[attr-defined]
            return (_CarryInPlace.apply(call, inputs[0], *inputs[1:], *extras),)
    # detached: where the layer never asks for the operation's own graph, nothing of it is kept
    values = tuple(result.detach() for result in results)
    return _Carry.apply(call, len(results), *values, *inputs, *extras)  # type: ignore[no-any-return]
