"""What is explained: the score of a class, a unit of a layer, or whatever a callable makes of the outputs.

The caller gives a *target* (None, an int, a LongTensor, a `Unit`, a callable); methods receive a resolved `Target`, in
which every sample's class or unit is fixed and which turns any batch of inputs into differentiable scores.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from attribkit.engine.frames import Capture
from attribkit.engine.layout import LAYOUTS
from attribkit.engine.outputs import class_scores, observe
from attribkit.engine.units import select, strongest, token_grid, unit_mask
from attribkit.errors import InputError, InputTypeError, ModelError, as_int, is_int

Position = Literal["max", "all"] | int | tuple[int, int]


@dataclass(frozen=True)
class Unit:
    """One element of a feature map at a layer, as a target.

    Attributes
    ----------
    layer : str
        Name of a site or module call (`attribkit.inspect` lists them).
    channel : int
        Index in the feature dimension.
    position : "max", "all", (int, int) or int
        ``(row, column)`` of the layer's map; for tokens an index, or ``(y, x)`` counted after the prefix tokens;
        ``"max"``: each sample's own strongest position, the first on ties; ``"all"``: the sum over positions.
    layout : {"NCHW", "NHWC", "NTC", "NC"} or None
        Where the features are in the layer's output; None infers it.

    Raises
    ------
    InputError
        A field has a value that no layer could satisfy.
    """

    layer: str
    channel: int
    position: Position = "max"
    layout: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.layer, str) or not self.layer:
            raise InputTypeError(f"Unit layer must be the name of a layer, got {self.layer!r}")
        object.__setattr__(self, "channel", as_int("Unit channel", self.channel))
        if self.layout is not None and self.layout not in LAYOUTS:
            raise InputError(f"Unit layout must be one of {', '.join(LAYOUTS)} or None, got {self.layout!r}")
        position: Any = self.position
        if isinstance(position, (tuple, list)) and len(position) == 2:
            position = tuple(as_int("Unit position", value) for value in position)
        elif position not in ("max", "all") if isinstance(position, str) else not is_int(position):
            raise InputError(f"Unit position must be 'max', 'all', (row, column) or a token index, got {position!r}")
        object.__setattr__(self, "position", position if isinstance(position, (str, tuple)) else int(position))

    def __str__(self) -> str:
        where = self.position if isinstance(self.position, str) else f"at {self.position}"
        return f"unit {self.channel} of {self.layer} ({where})"


@dataclass(frozen=True)
class Target:
    """A target whose class or unit is fixed for every one of the caller's samples.

    Methods get one; `scores` is all most of them need. Subclasses say what a score is.

    Attributes
    ----------
    size : int
        How many samples the caller gave.
    forward_kwargs : dict
        Further arguments of the model's forward; tensors whose first dimension is ``size`` go with their samples.
    """

    size: int
    forward_kwargs: dict[str, Any] = field(default_factory=dict)

    #: Name of the layer whose output the score is read off; None for the model's output.
    layer: str | None = field(default=None, init=False)

    def scores(self, model: nn.Module, x: Tensor, index: Tensor | None = None) -> Tensor:
        """Run the model on ``x`` and return each row's score, differentiable with respect to ``x``.

        Parameters
        ----------
        model
            The model, in eval mode.
        x
            Float tensor [B, C, H, W].
        index
            LongTensor [B]: which of the caller's samples each row belongs to; None: row i is sample i.

        Returns
        -------
        Tensor [B].

        Raises
        ------
        InputError
            ``index`` does not fit ``x`` or the caller's samples.
        """
        return self.read(self.observe(model, x, index), index)

    def observe(self, model: nn.Module, x: Tensor, index: Tensor | None = None) -> Any:
        """Run the model on ``x`` and return what scores are read off: its output, or a `Capture` of the layer's."""
        rows = self._rows(len(x), index)
        kwargs = self.kwargs_for(rows if index is not None else None)
        return observe(model, x, self.layer, kwargs)

    def read(self, observed: Any, index: Tensor | None = None) -> Tensor:
        """Return the scores [B] of what `observe` returned."""
        raise NotImplementedError

    def start(self, observed: Any, index: Tensor | None, unit_signal: str) -> tuple[Tensor, Tensor]:
        """Return the tensor that the signal starts from and the signal itself, of the same shape."""
        scores = self.read(observed, index)
        return scores, torch.ones_like(scores)

    def take(self, index: Tensor) -> Target:
        """Return the target of the samples in ``index`` (LongTensor [B]) as a target of its own."""
        return replace(self, size=len(index), forward_kwargs=self.kwargs_for(index))

    def kwargs_for(self, index: Tensor | None) -> dict[str, Any]:
        """Return ``forward_kwargs`` for the samples in ``index``; None: for the caller's batch as it is."""
        if index is None:
            return dict(self.forward_kwargs)
        return {
            key: value[index.to(value.device)]
            if isinstance(value, Tensor) and value.ndim > 0 and len(value) == self.size
            else value
            for key, value in self.forward_kwargs.items()
        }

    def describe(self) -> Any:
        """Return what `Attribution.target` shows: a LongTensor [N], a `Unit`, or a callable's name."""
        raise NotImplementedError

    def _rows(self, rows: int, index: Tensor | None) -> Tensor:
        if index is None:
            if rows != self.size:
                raise InputError(
                    f"x has {rows} rows for {self.size} samples: pass index= to say which sample each row belongs to"
                )
            return torch.arange(rows)
        if index.ndim != 1 or len(index) != rows or index.dtype != torch.long:
            raise InputError(f"index must be a LongTensor [{rows}], got {index.dtype} {tuple(index.shape)}")
        if rows and (int(index.min()) < 0 or int(index.max()) >= self.size):
            raise InputError(f"index runs to {int(index.max())}, but there are {self.size} samples")
        return index


@dataclass(frozen=True)
class ClassTarget(Target):
    """The score (logit) of one class for each sample; ``classes`` is a LongTensor [N]."""

    classes: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))

    def read(self, observed: Any, index: Tensor | None = None) -> Tensor:
        """Return each row's own class score [B]."""
        logits = class_scores(observed)
        classes = self.classes if index is None else self.classes[index.to(self.classes.device)]
        return logits.gather(1, classes.to(logits.device)[:, None])[:, 0]

    def take(self, index: Tensor) -> Target:
        """Return the target of some samples."""
        classes = self.classes[index.to(self.classes.device)]
        return ClassTarget(len(index), self.kwargs_for(index), classes=classes)

    def describe(self) -> Tensor:
        """Return the classes, LongTensor [N]."""
        return self.classes


@dataclass(frozen=True)
class CallableTarget(Target):
    """Whatever a callable makes of the model's outputs: one score for each row."""

    function: Callable[[Any], Tensor] = torch.sum

    def read(self, observed: Any, index: Tensor | None = None) -> Tensor:
        """Return ``function(outputs)``, checked to be [B]."""
        scores = self.function(observed)
        rows = index if index is not None else range(self.size)
        if not isinstance(scores, Tensor) or scores.shape != (len(rows),):
            got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise InputError(f"target callable must return one score a sample, shape ({len(rows)},), got {got}")
        if scores.dtype == torch.bool:
            raise InputError("target callable must return numbers, got torch.bool")
        return scores

    def describe(self) -> str:
        """Return the callable's name."""
        return getattr(self.function, "__qualname__", type(self.function).__name__)


@dataclass(frozen=True)
class UnitTarget(Target):
    """One unit of a layer; ``positions`` is a LongTensor [N] of flat positions, or None for the sum over all."""

    unit: Unit = field(default_factory=lambda: Unit("?", 0))
    layout: str = "NCHW"
    positions: Tensor | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "layer", self.unit.layer)

    def read(self, observed: Any, index: Tensor | None = None) -> Tensor:
        """Return the unit's value for each row [B]: its activation, or the sum over positions."""
        maps = select(observed.value, self.unit.channel, self.layout)
        if self.positions is None:
            return maps.sum(1)
        return maps.gather(1, self._positions(index, maps.device)[:, None])[:, 0]

    def start(self, observed: Any, index: Tensor | None, unit_signal: str) -> tuple[Tensor, Tensor]:
        """Return the layer's output and a signal that is zero but for the unit: 1, or the unit's own activation."""
        value: Tensor = observed.value
        positions = None if self.positions is None else self._positions(index, value.device)
        mask = unit_mask(value, self.unit.channel, self.layout, positions)
        return value, mask * value.detach() if unit_signal == "activation" else mask

    def take(self, index: Tensor) -> Target:
        """Return the target of some samples."""
        positions = None if self.positions is None else self.positions[index.to(self.positions.device)]
        return UnitTarget(len(index), self.kwargs_for(index), unit=self.unit, layout=self.layout, positions=positions)

    def describe(self) -> Unit:
        """Return the unit, with the layout that was used."""
        return replace(self.unit, layout=self.layout)

    def _positions(self, index: Tensor | None, device: torch.device) -> Tensor:
        if self.positions is None:
            raise InputError(f"{self.unit} has no single position")
        return (self.positions if index is None else self.positions[index.to(self.positions.device)]).to(device)


def check_target(target: Any, size: int) -> None:
    """Check what can be checked before the model runs.

    Raises
    ------
    InputError
        The target is of no kind that is known, or has another length than the batch.
    """
    if target is None or isinstance(target, (Unit, Target)) or is_int(target):
        return
    if isinstance(target, Tensor):
        if target.dtype in (torch.int8, torch.int16, torch.int32, torch.uint8, torch.long):
            if target.ndim == 0 or target.shape == (size,):
                return
            raise InputError(f"target has shape {tuple(target.shape)} for {size} inputs; it must be ({size},)")
        raise InputTypeError(f"target has dtype {target.dtype}; classes are a LongTensor [N]")
    if callable(target):
        return
    raise InputTypeError(
        f"target must be None, an int, a LongTensor [N] (torch.tensor([...])), a Unit or a callable, "
        f"got {type(target).__name__}"
    )


class PendingTarget:
    """A checked target that is resolved by what the model does on the caller's own inputs.

    Parameters
    ----------
    target
        What the caller gave.
    size
        The number of samples.
    forward_kwargs
        Further arguments of the model's forward.
    """

    def __init__(self, target: Any, size: int, forward_kwargs: dict[str, Any] | None = None) -> None:
        check_target(target, size)
        if forward_kwargs is not None and not isinstance(forward_kwargs, Mapping):
            raise InputTypeError(f"forward_kwargs must be a dict of arguments, got {type(forward_kwargs).__name__}")
        self.given = target
        self.size = size
        # tensors made in inference mode cannot take part in a derivative; copies can
        self.forward_kwargs = {
            name: value.clone() if isinstance(value, Tensor) and value.is_inference() else value
            for name, value in (forward_kwargs or {}).items()
        }
        self.layer = target.layer if isinstance(target, (Unit, Target)) else None

    def part(self, rows: slice) -> PendingTarget:
        """Return the pending target of some of the samples."""
        index = torch.arange(self.size)[rows]
        if len(index) == self.size:
            return self
        given = self.given
        if isinstance(given, Target):
            given = given.take(index)
        elif isinstance(given, Tensor) and given.ndim == 1:
            given = given[rows]
        kwargs = Target(self.size, self.forward_kwargs).kwargs_for(index)
        return PendingTarget(given, len(index), kwargs)

    def resolve(self, observed: Any, model: nn.Module) -> Target:
        """Fix each sample's class or unit from the model's output, or the layer's `Capture`, on the caller's inputs.

        Raises
        ------
        InputError
            A class, channel or position is out of range.
        ModelError
            The output holds no class scores.
        """
        given, base = self.given, (self.size, self.forward_kwargs)
        if isinstance(given, Target):
            return given
        if isinstance(given, Unit):
            return _resolve_unit(given, observed, model, *base)
        if callable(given) and not isinstance(given, Tensor):
            return CallableTarget(*base, function=given)
        logits = class_scores(observed)
        if len(logits) != self.size:
            raise ModelError(f"the model returned {len(logits)} rows of class scores for {self.size} inputs")
        if given is None:
            classes = logits.detach().argmax(1)
        else:
            classes = torch.as_tensor(given, dtype=torch.long, device=logits.device).expand(self.size).clone()
        count = logits.shape[1]
        wrong = (classes < 0) | (classes >= count)
        if not wrong.is_meta and bool(wrong.any()):
            first = int(classes[wrong][0])
            raise InputError(f"target class {first} is out of range: the model has {count} classes (0 to {count - 1})")
        return ClassTarget(*base, classes=classes)


def _resolve_unit(unit: Unit, captured: Capture, model: nn.Module, size: int, forward_kwargs: dict[str, Any]) -> Target:
    value = captured.value
    layout = unit.layout or captured.layout
    if layout is None:
        raise InputError(
            f"layer {unit.layer!r} has output {tuple(value.shape)} in which the feature dimension is not known: "
            f"give Unit(layout=...), one of {', '.join(LAYOUTS)}"
        )
    if len(layout) != value.ndim:
        raise InputError(f"layer {unit.layer!r} has output {tuple(value.shape)}, which is not {layout}")
    if len(value) != size:
        raise InputError(
            f"layer {unit.layer!r} has output {tuple(value.shape)} for {size} input{'s' * (size != 1)}: "
            "its rows are not the samples (windows, say), so that no unit there belongs to one"
        )
    channels = value.shape[layout.index("C")]
    if not 0 <= unit.channel < channels:
        raise InputError(
            f"channel {unit.channel} is out of range: layer {unit.layer!r} has {channels} channels "
            f"(0 to {channels - 1}) in its output {tuple(value.shape)} ({layout})"
        )
    positions = strongest(value.detach(), unit.channel, layout) if unit.position == "max" else None
    if not isinstance(unit.position, str):
        flat = token_grid(value, layout, model, captured.image).flat(unit.position, unit.layer)
        positions = torch.full((size,), flat, dtype=torch.long, device=value.device)
    return UnitTarget(size, forward_kwargs, unit=unit, layout=layout, positions=positions)
