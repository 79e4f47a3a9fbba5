"""Sites: the names and the record of each call of an operation in one forward pass."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from attribkit.errors import UnknownNameError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterable

    from attribkit.engine.inverse import InverseLayer


@dataclass
class Site:
    """One call of one operation, where an inverse layer can be attached.

    Attributes
    ----------
    name : str
        The module's path, or the parent's path and the function's name; repeats carry ``_1``, ``_2``, …
    kind : str
        The op kind.
    op : str
        The module class (``ReLU``) or the function (``relu()``).
    path : str
        Path of the module that made the call.
    input_shape, output_shape : tuple of int or None
        Shapes of the first tensor input and of the (first) output.
    layout : str or None
        Where the features are in the output: ``NCHW``, ``NHWC``, ``NTC``, ``NC``.
    inverse_layer : InverseLayer or None
        What the method's table attaches here; None where the ordinary derivative stays.
    functional : bool
        Whether it is a functional call rather than a module's.
    detached : bool
        Whether it was computed without gradients, so that no signal passes here.
    transformed : bool
        Whether it was computed inside a transform of ``torch.func`` (grad, vmap, …), where no inverse layer can act.
    """

    name: str
    kind: str
    op: str
    path: str
    input_shape: tuple[int, ...] | None = None
    output_shape: tuple[int, ...] | None = None
    layout: str | None = None
    inverse_layer: InverseLayer | None = None
    functional: bool = False
    detached: bool = False
    transformed: bool = False

    @property
    def rewritten(self) -> bool:
        """Whether the method's table attaches an inverse layer here that does more than to observe."""
        return self.inverse_layer is not None and not self.inverse_layer.observer

    @property
    def ordinary(self) -> bool:
        """Whether the signal passes by the ordinary derivative, be it that the inverse layer computes that."""
        return self.inverse_layer is None or self.inverse_layer.observer or self.inverse_layer.ordinary


@dataclass
class Names:
    """Hands out site names: a module's first call bears its path, repeats and clashes take the next free suffix.

    Parameters
    ----------
    paths
        Paths of all modules of the model: never given to a functional call.
    """

    paths: set[str]
    taken: set[str] = field(default_factory=set)
    _next: dict[str, int] = field(default_factory=dict)

    def for_module(self, path: str) -> str:
        """Name a call of the module at ``path``."""
        if path not in self.taken:
            self.taken.add(path)
            return path
        return self._suffixed(path)

    def for_function(self, parent: str, function: str) -> str:
        """Name a functional call of ``function`` inside the module at ``parent``."""
        base = f"{parent}.{function}" if parent else function
        if base not in self.taken and base not in self.paths:
            self.taken.add(base)
            return base
        return self._suffixed(base)

    def _suffixed(self, base: str) -> str:
        number = self._next.get(base, 1)
        while (name := f"{base}_{number}") in self.taken or name in self.paths:
            number += 1
        self._next[base] = number + 1
        self.taken.add(name)
        return name


def unknown_layer(name: str, known: Iterable[str]) -> UnknownNameError:
    """Return the error for a layer name that no call of the forward pass bore."""
    return UnknownNameError(f"layer {name!r} is not called in the model's forward pass; {did_you_mean(name, known)}")
