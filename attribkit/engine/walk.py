"""One forward pass, watched: forward hooks follow the modules, a torch function mode the functions.

Both act in the walk's own thread only. The walk names every site, asks the table which inverse layer goes there, and
attaches it; a site without one is left to autograd untouched.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from attribkit.engine.ends import GraphWanted, StopForward
from attribkit.engine.frames import Capture, Frame
from attribkit.engine.hooks import hooked, those_that_compute
from attribkit.engine.intercept import Interceptor, calls_a_rectifier
from attribkit.engine.inverse import InverseLayer
from attribkit.engine.layout import Layouts
from attribkit.engine.lean import Lean, Pixels, Recorder
from attribkit.engine.ops import ModuleKind, Operation, Vocabulary, has_forward_of, is_op_module
from attribkit.engine.origin import mark_model_error
from attribkit.engine.sites import Names, Site, unknown_layer
from attribkit.engine.splice import FunctionCall, Splicer, first_tensor, is_transformed, module_params
from attribkit.engine.table import Table
from attribkit.engine.tree import paths_of
from attribkit.errors import InputError, MethodError


class Walk:
    """Runs a model's forward pass once and attaches a table's inverse layers to its sites.

    Parameters
    ----------
    model
        The model.
    table
        Which inverse layer goes where; None attaches nothing.
    vocabulary
        The operations known.
    layers
        Names of the module calls or sites whose outputs to catch.
    stop
        Whether the forward pass may end once all of them are caught.
    layouts
        Whether to note every site's layout (that of ``layers`` is noted in any case).
    lean
        Whether known operations may keep less than autograd does, which serves one way back to the inputs.
    least, recorder
        Of `Lean`.
    keeps_graphs
        Whether every operation keeps its own graph, for a model that differentiates on its way up; not with ``lean``.

    Attributes
    ----------
    sites : list of Site
        In order of execution.
    shapes : dict of str to tuple of int, or None
        The output's shape at every layer a unit can be asked for: module calls, composites included, and functional
        sites, in order of their return. Empty where neither ``layers`` nor ``layouts`` are asked for.
    captured : dict of str to Capture
        What was caught, by layer.
    complete : bool
        Whether the forward pass ran to its end.
    plain_graph : bool
        Whether nobody else had a hand in the graph: no hook on a tensor, no hooks on what operations save
        (checkpoints have them).
    wanted : bool
        Whether the model turned out to need graphs that were not kept: see `GraphWanted`.
    """

    def __init__(
        self,
        model: nn.Module,
        table: Table | None = None,
        vocabulary: Vocabulary | None = None,
        *,
        layers: Iterable[str | None] = (),
        stop: bool = False,
        layouts: bool = False,
        lean: bool = False,
        least: int = 0,
        recorder: Recorder | None = None,
        keeps_graphs: bool = False,
    ) -> None:
        self.model = model
        self.table = table if table is not None else Table({})
        self.vocabulary = vocabulary if vocabulary is not None else Vocabulary()
        self.layers = {layer for layer in layers if layer is not None}
        self.stop = stop
        self.sites: list[Site] = []
        self.shapes: dict[str, tuple[int, ...] | None] = {}
        self.captured: dict[str, Capture] = {}
        self.complete = False
        self.plain_graph = True
        self.wanted = False
        self._image: tuple[int, ...] | None = None
        self.paths = paths_of(model)
        self.layouts = Layouts(model, active=layouts or bool(self.layers))
        self._names = Names(set(self.paths.values()))
        self._stack: list[Frame] = []
        self._thread = threading.get_ident()
        end = min(self.layers, default=None) if stop else None
        self.lean = Lean(Pixels(model, self.paths, self.table, end), least, recorder) if lean else None
        self.splicer = Splicer(self.lean, keeps_graphs=keeps_graphs)
        self._probed: dict[nn.Module, bool] = {}
        self._hidden: dict[str, str] = {}
        self._interceptor: Interceptor | None = None
        self._live = False

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Run the forward pass; return the model's output, None when it ended at the layer.

        Raises
        ------
        Exception
            Whatever the model raises, marked with ``attribkit_origin = "model forward"``.
        GraphWanted
            The model differentiates operations whose graph is not kept. A model that catches this goes on, with a
            result that is worth nothing: ``wanted`` tells.
        """
        grad = torch.is_grad_enabled()
        first = first_tensor(args)
        self._image = tuple(first.shape[-2:]) if first is not None and first.ndim == 4 else None
        # with gradients a site counts as rewritten when it is; without them, as what the table says
        self._live = grad and any(isinstance(t, Tensor) and t.requires_grad for t in (*args, *kwargs.values()))
        for tensor in args[:1]:
            if isinstance(tensor, Tensor) and tensor.ndim >= 2:
                self.layouts.set(tensor, 1)
        interceptor = self._interceptor = Interceptor(self)
        watched = self.paths if self.layouts.active else those_that_compute(self.model, self.paths, self)
        try:
            with hooked(watched, self._enter, self._leave), interceptor:
                output = self.model(*args, **kwargs)
                self.complete = True
                return output
        except StopForward:
            return None
        except MethodError:
            raise
        except Exception as error:
            mark_model_error(error, self.model, self._where())
            raise
        finally:
            torch.set_grad_enabled(grad)
            self._stack.clear()
            self.splicer.clear()
            del interceptor.walk  # no cycle: what was caught must go when the walk goes
            self._interceptor = None
            if self.lean is not None:
                self.lean.pixels.close()

    @property
    def rewritten(self) -> int:
        """How many sites so far carry the signal otherwise than by their ordinary derivative."""
        if self.table.all_ordinary():
            return sum(site.rewritten for site in self.sites)
        return sum(not site.ordinary for site in self.sites)

    def catch(self, layer: str) -> Capture:
        """Return what was caught at a layer; `UnknownNameError` where the forward pass never called it."""
        if layer in self.captured:
            return self.captured[layer]
        if layer in self._hidden:
            whole = self._hidden[layer] or type(self.model).__name__
            raise InputError(f"layer {layer!r} is inside {whole!r}, which is one operation as a whole here")
        if layer in self.shapes:
            raise InputError(f"layer {layer!r} returns no floating-point tensor: there are no units in it")
        raise unknown_layer(layer, self.names())

    def names(self) -> list[str]:
        """Return every name a layer can be asked for by: module calls and functional sites."""
        return list(self.shapes)

    def _restore(self, *trees: Any) -> None:
        """Have tensors laid out as torch would have, for those who get hold of them otherwise than by a function."""
        if self.lean is not None and self.lean.pixels.any:
            self.lean.pixels.restore_in(*trees)

    def _is_foreign(self) -> bool:
        """Tell whether a module call is none of this walk's: another thread's, or made while it is paused."""
        interceptor = self._interceptor
        return threading.get_ident() != self._thread or interceptor is None or interceptor.paused

    def _where(self) -> str:
        return next((frame.name for frame in reversed(self._stack) if frame.name), "")

    # -- modules ---------------------------------------------------------------------------------------------------

    def _enter(self, module: nn.Module, *call: Any) -> Any:
        # Another thread can catch a hook between its registration and torch's note that it takes keywords: gate first.
        if self._is_foreign():
            return None
        args, kwargs = call
        path = self.paths[module]
        known = self.vocabulary.module_kind(type(module))
        inside_whole = bool(self._stack) and self._stack[-1].whole
        frame = Frame(
            module=module,
            path=path,
            name="" if inside_whole else self._names.for_module(path),
            known=known,
            whole=inside_whole or (known is not None and known.whole),
            claimable=is_op_module(module, known),
        )
        self._stack.append(frame)
        if inside_whole:
            self._hidden.setdefault(path, next(f.name for f in reversed(self._stack) if f.name or f is self._stack[0]))
            return None
        if frame.claimable and self._is_opaque_rectifier(module, known, args, kwargs):
            frame.whole, frame.claimable = True, False
        if frame.claimable:
            return None
        layer = frame.layer = self._layer_for_module(frame)
        if layer is None:
            return None
        frame.whole = True
        kind = known.kind if known is not None else "other"
        self._restore(args, kwargs)
        with torch._C.DisableTorchFunction():  # our own tensor calls are no sites
            originals, spec = tree_flatten((args, kwargs))
            params = functools.partial(module_params, module)
            pending, leaves = self.splicer.prepare(frame.name, kind, module, layer, originals, params)
            for original, alias in zip(originals, leaves, strict=True):
                if alias is not original:
                    self.layouts.inherit([original], alias)
        frame.pending = pending
        return tree_unflatten(leaves, spec) if pending is not None else None

    def _layer_for_module(self, frame: Frame) -> InverseLayer | None:
        """Return the layer attached to a module as a whole: by name, by its class, or by its kind if it has one."""
        known = frame.known
        if known is not None and frame.whole:
            return self.table.find(frame.name, known.kind, frame.module)
        if known is not None and has_forward_of(frame.module, known.cls):
            return None
        found = self.table.by_name(frame.name) if frame.name else None
        if found is None:
            found = self.table.by_class(type(frame.module))
            if found is not None and known is not None and self.table.by_class(known.cls) is found:
                return None  # meant for the operation inside (a batch norm's, not its fused activation's)
        return found

    def _leave(self, module: nn.Module, *call: Any) -> Any:
        if not self._stack or self._is_foreign():
            return None
        output = call[-1]
        while self._stack:  # frames above this one belong to calls whose exception the model caught
            frame = self._stack.pop()
            if frame.module is module:
                break
        else:
            return None
        if output is None or not (self.layouts.active or frame.whole or frame.site is not None):
            return None
        with torch._C.DisableTorchFunction():  # our own tensor calls are no sites
            replaced = None
            inner = value = first_tensor(output)
            if frame.pending is not None:
                output, attached = self.splicer.finish(frame.pending, output, whole=True)
                replaced = output if attached else None
                value = first_tensor(output)
            if frame.whole and self.layouts.active and value is not None and self.layouts.channel(value) is None:
                self.layouts.inherit([inner, *tree_flatten(call[:-1])[0]], value)
            if frame.site is not None:  # what the module returns, which may be the operation's result rearranged
                frame.site.output_shape, frame.site.layout = _shape_of(value), self.layouts.of(value)
            if frame.name or frame.module is self.model:
                self._record_module(frame, value, attached=replaced is not None)
            if frame.name and self.layouts.active:
                self.shapes[frame.name] = _shape_of(value)
                if frame.name in self.layers:
                    self._catch(value, frame.name)
        return replaced

    def _record_module(self, frame: Frame, value: Tensor | None, *, attached: bool) -> None:
        """Record a module that is one site as a whole; sites inside it are not sites of their own."""
        known = frame.known
        if not frame.whole or (known is None and frame.layer is None):
            return
        kind = known.kind if known is not None else "other"
        if kind == "hardtanh":
            kind = "rectifier" if getattr(frame.module, "min_val", None) == 0 else "gate"
        shape = _shape_of(value)
        self.sites.append(
            Site(
                frame.name or type(frame.module).__name__,  # the model itself has no path
                kind,
                type(frame.module).__name__,
                frame.path,
                input_shape=tuple(frame.pending.call.input_shapes[0]) if frame.pending is not None else shape,
                output_shape=shape,
                layout=self.layouts.of(value),
                inverse_layer=frame.layer if attached or not self._live else None,
                detached=self._is_detached(value),
                transformed=is_transformed(),
            )
        )

    def _is_detached(self, value: Tensor | None) -> bool:
        return self._live and (value is None or not value.requires_grad or not torch.is_grad_enabled())

    def _is_opaque_rectifier(self, module: nn.Module, known: ModuleKind | None, args: Any, kwargs: Any) -> bool:
        """Tell whether a rectifier's subclass computes it without calling one, so that the module is the site."""
        if known is None or known.kind not in ("rectifier", "hardtanh") or has_forward_of(module, known.cls):
            return False
        if module not in self._probed:
            self._probed[module] = not calls_a_rectifier(module, self.vocabulary, args, kwargs)
        return self._probed[module]

    # -- functions -------------------------------------------------------------------------------------------------

    def call(self, operation: Operation, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one call of a known function: name it, attach its inverse layer if it has one, record it."""
        frame = self._stack[-1] if self._stack else None
        if torch._C._autograd._top_saved_tensors_default_hooks(True) is not None:
            self.plain_graph = False
        kind = operation.kind_of_call(args, kwargs)
        if frame is None or frame.whole or kind is None:
            self._restore(args, kwargs)
            self.splicer.rescue(operation, function, args, kwargs)
            output = function(*args, **kwargs)
            self.layouts.after(kind, operation.name, args, kwargs, output)
            return output
        claimed = frame.claimable and frame.known is not None and frame.known.kind in (kind, operation.kind)
        module = frame.module if claimed else None
        if claimed:
            frame.claimable = False
        name = frame.name if claimed and frame.name else self._names.for_function(frame.path, operation.name)
        layer = self.table.find(name, kind, module, function)
        call = FunctionCall(operation, function, args, kwargs)
        output, attached = self.splicer.run(name, kind, module, layer, call)
        with torch._C.DisableTorchFunction():  # our own looks at tensors are no sites
            source, value = first_tensor(args), first_tensor(output)
            self.layouts.after(kind, operation.name, args, kwargs, value)
            site = Site(
                name,
                kind,
                type(module).__name__ if module is not None else f"{operation.name}()",
                frame.path,
                input_shape=_shape_of(source if source is not None else first_tensor(kwargs)),
                output_shape=_shape_of(value),
                layout=self.layouts.of(value),
                inverse_layer=layer if attached or not self._live else None,
                functional=module is None,
                detached=self._is_detached(value),
                transformed=is_transformed(),
            )
            self.sites.append(site)
            if claimed:
                frame.site = site
            if self.layouts.active and not (claimed and frame.name):
                self.shapes[name] = _shape_of(value)
                if name in self.layers:
                    self._catch(value, name)
        return output

    def differentiate(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a function by which the model itself differentiates: no inverse layer has a hand in that.

        Raises
        ------
        GraphWanted
            It may need a graph that has not been kept.
        """
        if self._has_all():  # what comes now runs without gradients
            raise StopForward
        way = self.splicer.way
        if (self.lean is not None and self.lean.used) or (self.splicer.attached and not way.keeps_graphs):
            self.wanted = True
            raise GraphWanted
        before, way.models_own = way.models_own, True
        try:
            return function(*args, **kwargs)
        finally:
            way.models_own = before

    def _has_all(self) -> bool:
        """Tell whether the forward pass may end: what is asked for is caught."""
        return self.stop and len(self.captured) == len(self.layers)

    def _catch(self, value: Tensor | None, name: str) -> None:
        if name in self.captured or value is None:
            return
        self._restore(value)
        # a copy, so that an in-place operation that follows changes nothing
        self.captured[name] = Capture(value.clone(), name, self.layouts.of(value, name), self._image)
        if not self._has_all():
            return
        if self.rewritten or not self.table.any_rewrites():
            raise StopForward
        # what comes now is watched only, for what the table says of it
        self._live = False
        torch.set_grad_enabled(False)


def _shape_of(tensor: Tensor | None) -> tuple[int, ...] | None:
    return tuple(tensor.shape) if tensor is not None else None
