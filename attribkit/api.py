"""The front door: `attribute`, `project`, `inspect`, `methods`."""

from __future__ import annotations

import functools
import warnings
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from attribkit import progress as bars
from attribkit._batches import by_call, by_table, joined
from attribkit.attribution import Attribution, provenance
from attribkit.checks import check_inputs, check_options, explain_misfits, usable_model
from attribkit.engine import coverage
from attribkit.engine.inspection import Inspection, useful_layers
from attribkit.engine.invert import leaf, up, vocabulary
from attribkit.engine.projection import project_rows, project_units
from attribkit.engine.state import pristine
from attribkit.engine.table import Table
from attribkit.errors import (
    CoverageError,
    CoverageWarning,
    InputError,
    InputTypeError,
    as_int,
    is_int,
)
from attribkit.method import InverseMethod, Method, tags_of
from attribkit.plugins import MethodEntry, manager
from attribkit.targets import PendingTarget, Unit

MethodLike = str | type[Method] | Method


@dataclass(frozen=True)
class MethodInfo:
    """What is known of a method without loading it, and its options.

    Attributes
    ----------
    name, summary : str
        What it is called, and one line on what it does.
    distribution, version : str
        What it came with.
    plugin : str
        The plugin that registered it.
    source : str
        Where it was published; empty where the plugin does not say.
    """

    name: str
    summary: str
    distribution: str
    version: str
    plugin: str
    source: str
    _entry: MethodEntry

    @functools.cached_property
    def options(self) -> dict[str, Any]:
        """The method's options with their defaults; asking loads the method."""
        return self._entry.load().options()

    @property
    def tags(self) -> frozenset[str]:
        """The method's tags; asking loads the method."""
        return tags_of(self._entry.load())

    def load(self) -> type[Method]:
        """Return the method's class."""
        return self._entry.load()

    def _repr_html_(self) -> str:
        from attribkit.report.notebook import method_html

        return method_html(self)


def methods() -> dict[str, MethodInfo]:
    """Return every method there is, by name.

    Returns
    -------
    dict of str to MethodInfo
    """
    return {
        name: MethodInfo(name, entry.summary, entry.distribution, entry.version, entry.plugin.name, entry.source, entry)
        for name, entry in sorted(manager().methods.items())
    }


def attribute(
    model: nn.Module,
    inputs: Tensor,
    method: MethodLike = "deconvnet",
    target: Any = None,
    *,
    layer: str | None = None,
    batch_size: int | None = None,
    strict: bool = False,
    progress: bool = False,
    forward_kwargs: dict[str, Any] | None = None,
    **options: Any,
) -> Attribution:
    """Explain a model's score on some inputs.

    Parameters
    ----------
    model
        Any torch module; it runs in eval mode and is left as it was.
    inputs
        Float tensor [N, C, H, W] on the model's device.
    method
        A method's name, class or instance.
    target
        What to explain: None (each sample's most probable class), an int, a LongTensor [N], a `Unit`, or a callable
        ``outputs -> scores [N]``.
    layer
        For methods with an option of that name it is that option; for the others ``layer="conv5", target=12`` is short
        for ``target=Unit("conv5", 12)``.
    batch_size
        How many samples go through at once; None: all.
    strict
        Whether a method that rewrote nothing, or whose table is misspelt, is an error instead of a warning.
    progress
        Whether to show a progress bar.
    forward_kwargs
        Further arguments of the model's forward; tensors whose first dimension is N go with their samples.
    **options
        The method's own options (``attribkit.methods()[name].options``).

    Returns
    -------
    Attribution
        ``values`` [N, C, H, W] of the inputs' dtype and device.

    Raises
    ------
    InputError
        Inputs, target or options break a rule; the message names them.
    ModelError
        The model cannot be used as it is.
    CoverageError
        With ``strict``: the method met none of its operations, or its table names an op kind that does not exist.

    Warns
    -----
    CoverageWarning
        The method met none of its operations, so that the map is the plain gradient, or its table of inverse layers
        names an op kind that does not exist.
    """
    model = usable_model(model)
    chosen = find_method(method)
    if layer is not None:
        if "layer" in type(chosen).options():
            options["layer"] = layer
        else:
            target = _unit_of(layer, target)
    check_options(chosen, options)
    check_inputs(inputs)
    if batch_size is not None and as_int("batch_size", batch_size) < 1:
        raise InputError(f"batch_size must be a positive int or None, got {batch_size!r}")
    pending = PendingTarget(target, len(inputs), forward_kwargs)
    size = batch_size or len(inputs)
    parts = []
    with (
        # a method that is a table may do without the model's code, unless the target brings code of its own
        pristine(model, inputs, at_once=not (is_table(chosen) and _is_class(target))) as guard,
        explain_misfits(model, inputs),
        coverage.logging() as log,
        bars.shown(progress, chosen.name),
    ):
        for start in bars.track(range(0, len(inputs), size), chosen.name):
            rows = slice(start, start + size)
            if is_table(chosen):
                parts.append(by_table(model, inputs[rows], chosen, pending.part(rows), guard))
            else:
                parts.append(by_call(model, inputs[rows], chosen, pending.part(rows), options))
        whole, table = joined(parts), _table_of(chosen)
        result = Attribution(
            values=whole.values,
            method=chosen.name or type(chosen).__name__,
            target=whole.target,
            scores=whole.scores,
            coverage=_coverage(chosen, table, log),
            extras=whole.extras,
            provenance=provenance(model, options),
            _model=weakref.ref(model),
        )
    _warn_if_plain(chosen, table, log, strict=strict)
    return result


def _is_class(target: Any) -> bool:
    """Tell whether a target is a class, or one for each sample: what brings no code of its own."""
    return target is None or is_int(target) or type(target) is Tensor


def project(
    model: nn.Module,
    inputs: Tensor,
    layer: str,
    channels: Sequence[int],
    method: MethodLike = "deconvnet",
    position: Any = "max",
    *,
    layout: str | None = None,
    strict: bool = False,
) -> Attribution:
    """Project many units of one layer to pixel space after one forward pass.

    Parameters
    ----------
    model, inputs, method, strict
        As for `attribute`; the method must be a table of inverse layers.
    layer, channels, position, layout
        The units: see `Unit`.

    Returns
    -------
    Attribution
        ``values`` [N, len(channels), C, H, W], ``scores`` [N, len(channels)].

    Raises
    ------
    InputError
        Inputs or units break a rule, or the method has no table.
    """
    model = usable_model(model)
    chosen = find_method(method)
    check_inputs(inputs)
    if inputs.is_meta:
        raise InputError("inputs is on the meta device, where no unit has a value")
    given: Any = channels
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise InputTypeError(f"channels must be a sequence of ints, got {given!r}")
    channels = [as_int("each of channels", channel) for channel in given]
    if not channels:
        raise InputError("channels is empty: give at least one channel to project")
    if not is_table(chosen):
        raise InputError(f"project() needs a method given by a table of inverse layers; {chosen.name!r} is none")
    table = chosen.table()
    with pristine(model, inputs), explain_misfits(model, inputs), coverage.logging() as log:
        found, units = project_units(
            model, inputs, layer, channels, position, table, unit_signal=chosen.unit_signal, layout=layout
        )
    _warn_if_plain(chosen, table, log, strict=strict)
    return Attribution(
        values=found.values,
        method=chosen.name,
        target=units,
        scores=found.scores,
        coverage=_coverage(chosen, table, log),
        provenance=provenance(model, {}),
        _model=weakref.ref(model),
    )


def project_each(
    model: nn.Module, inputs: Tensor, layer: str, channels: Tensor, positions: Tensor, method: MethodLike
) -> Tensor | None:
    """Project one unit of each sample on rectangles: [N, C, H, W]; None where `attribute` must do it.

    Parameters
    ----------
    model, inputs, method
        As for `attribute`.
    layer
        A layer whose output is [N, channels, rows, columns].
    channels, positions
        Each sample's unit: LongTensors [N], positions counted row by row.
    """
    chosen = find_method(method)
    if not is_table(chosen):
        return None
    table = chosen.table()
    with pristine(model, inputs), explain_misfits(model, inputs), coverage.logging() as log:
        found = project_rows(model, inputs, layer, channels, positions, table, unit_signal=chosen.unit_signal)
    if found is not None:
        _warn_if_plain(chosen, table, log, strict=False)
    return found


def inspect(model: nn.Module, inputs: Tensor, method: MethodLike | None = None) -> Inspection:
    """List every site of the model's forward pass and what a method would do there.

    Parameters
    ----------
    model
        Any torch module, on any device (the meta device too).
    inputs
        Float tensor [N, C, H, W] on the model's device.
    method
        A method's name, class or instance; None lists the sites alone.

    Returns
    -------
    Inspection
    """
    model = usable_model(model)
    chosen = find_method(method) if method is not None else None
    check_inputs(inputs)
    table = _table_of(chosen)
    # gradients only where there are inverse layers: whether one takes hold shows only then
    with pristine(model, inputs), explain_misfits(model, inputs), torch.set_grad_enabled(bool(table)):
        walk, _ = up(model, leaf(inputs), table, None, layouts=True)
    name = chosen.name if chosen is not None else None
    return Inspection(
        type(model).__name__,
        walk.sites,
        coverage.summarise(name or "", walk.sites, applies=table.any_rewrites()),
        walk.shapes,
        useful_layers(model, walk.sites, walk.shapes),
        name,
    )


def find_method(method: MethodLike) -> Method:
    """Return a method by name, class or instance.

    Raises
    ------
    UnknownNameError
        No method has that name.
    InputTypeError
        It is something else.
    """
    if isinstance(method, str):
        method = manager().method(method).load()
    if isinstance(method, type) and issubclass(method, Method):
        method = method()
    if not isinstance(method, Method):
        raise InputTypeError(f"method must be a name, a Method class or an instance, got {method!r}")
    if type(method).attribute is Method.attribute:
        raise InputTypeError(f"method {type(method).__name__} does not define attribute(model, inputs, target)")
    return method


def is_table(method: Method) -> TypeGuard[InverseMethod]:
    """Tell whether a method is a table of inverse layers that the engine carries out."""
    return isinstance(method, InverseMethod) and type(method).attribute is InverseMethod.attribute


def _table_of(method: Method | None) -> Table:
    """Return the table of a method, an empty one where there is none."""
    return method.table() if isinstance(method, InverseMethod) else Table({})


def _coverage(method: Method, table: Table, log: coverage.Log) -> coverage.Coverage:
    applies = table.any_rewrites() if isinstance(method, InverseMethod) else log.rewritten > 0
    return coverage.summarise(method.name, log.sites or [], applies=applies, complete=log.complete)


def _warn_if_plain(method: Method, table: Table, log: coverage.Log, *, strict: bool) -> None:
    """Say that a method with a table met nothing to rewrite, or that its table names what can never be met."""
    clauses = []
    if table.any_rewrites() and log.complete and log.rewritten == 0:
        clauses.append("met none of the operations it rewrites: the result equals the plain gradient")
    misnamed = table.misnamed(vocabulary(), [site.name for site in log.sites or []]) if table else []
    if misnamed and not clauses:
        clauses.append("has inverse layers that are never used")
    if clauses:
        message = f"{method.name or type(method).__name__} {'; '.join([*clauses, *misnamed])}"
        if strict:
            raise CoverageError(message)
        warnings.warn(message, CoverageWarning, stacklevel=3)


def _unit_of(layer: str, target: Any) -> Unit:
    if is_int(target):
        return Unit(layer, target)
    raise InputError(
        f"layer={layer!r} needs target= a channel of it, an int (a Unit goes without layer=), got target={target!r}"
    )
