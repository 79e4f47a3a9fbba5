"""The table: which inverse layer goes where."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from attribkit.engine.inverse import InverseLayer
from attribkit.errors import InputTypeError, did_you_mean

if TYPE_CHECKING:
    from torch import nn

    from attribkit.engine.ops import Vocabulary


class Table:
    """Which inverse layer goes where: by site name (a compiled pattern), module class, function, or op kind.

    A name beats a class, a class beats a kind; among patterns the first in the table's order decides, among classes
    the most derived.

    Parameters
    ----------
    layers
        Maps op kinds (bare strings), module classes or functions, and ``re.compile(...)`` patterns, which must match a
        site's whole name, to inverse layers.

    Raises
    ------
    InputTypeError
        A key or a value is of another type.
    """

    def __init__(self, layers: Mapping[Any, InverseLayer]) -> None:
        self.names: list[tuple[re.Pattern[str], InverseLayer]] = []
        self.classes: dict[type, InverseLayer] = {}
        self.functions: dict[Any, InverseLayer] = {}
        self.kinds: dict[str, InverseLayer] = {}
        if not isinstance(layers, Mapping):
            raise InputTypeError(f"inverse_layers must be a dict, got {type(layers).__name__}")
        for key, layer in layers.items():
            if not isinstance(layer, InverseLayer):
                raise InputTypeError(f"inverse_layers[{key!r}] is {layer!r}, not an instance of InverseLayer")
            if type(layer).carry is InverseLayer.carry:
                raise InputTypeError(f"inverse_layers[{key!r}] is {layer!r}, which does not define carry(signal, site)")
            needs: Any = layer.needs
            if not isinstance(needs, (set, frozenset, list, tuple)) or not all(isinstance(each, str) for each in needs):
                raise InputTypeError(f"{layer!r}.needs must be a set of names, got {needs!r}")
            unknown = set(needs) - {"input", "output"}
            if unknown:
                raise InputTypeError(f"{layer!r}.needs names {sorted(unknown)}; allowed are 'input' and 'output'")
            if isinstance(key, re.Pattern):
                self.names.append((key, layer))
            elif isinstance(key, type):
                self.classes[key] = layer
            elif isinstance(key, str):
                self.kinds[key] = layer
            elif callable(key):
                self.functions[key] = layer
            else:
                raise InputTypeError(f"inverse_layers has the key {key!r}; use an op kind, a class or re.compile(...)")

    def __bool__(self) -> bool:
        return bool(self.names or self.classes or self.functions or self.kinds)

    def layers(self) -> list[InverseLayer]:
        """Return every inverse layer in the table."""
        named = [layer for _, layer in self.names]
        return [*named, *self.classes.values(), *self.functions.values(), *self.kinds.values()]

    def misnamed(self, known: Vocabulary, sites: Collection[str] = ()) -> list[str]:
        """Return a clause for each op kind and function in the table that no operation has: its layer is never used.

        Parameters
        ----------
        known
            The operations there are.
        sites
            Names of sites, which may have been written as bare strings.
        """
        kinds = known.kinds
        found = []
        for key in self.kinds:
            if key in kinds:
                continue
            if key in sites:
                found.append(f"{key!r} is the name of a site, not an op kind: write re.compile({re.escape(key)!r})")
            else:
                hint = "" if key.isidentifier() else "; the name of a site is given as re.compile(...)"
                found.append(f"{key!r} is no op kind, {did_you_mean(key, sorted(kinds))}{hint}")
        for function in self.functions:
            if function not in known.functions:
                found.append(f"{function!r} is no operation that the engine knows: a plugin can teach it")
        return found

    def all_batched(self) -> bool:
        """Tell whether every layer of the table can carry many signals at once."""
        return all(layer.batched for layer in self.layers())

    def all_ordinary(self) -> bool:
        """Tell whether every layer of the table computes the ordinary derivative; observers change nothing of that."""
        return all(layer.ordinary or layer.observer for layer in self.layers())

    def any_rewrites(self) -> bool:
        """Tell whether any layer of the table does more than to observe."""
        return not all(layer.observer for layer in self.layers())

    def by_name(self, name: str) -> InverseLayer | None:
        """Return the layer of the first pattern that matches the whole of ``name``."""
        return next((layer for pattern, layer in self.names if pattern.fullmatch(name)), None)

    def by_class(self, cls: type) -> InverseLayer | None:
        """Return the layer of the most derived class in the table that ``cls`` is or derives from."""
        if not self.classes:
            return None
        return next((self.classes[base] for base in cls.__mro__ if base in self.classes), None)

    def find(self, name: str, kind: str, module: nn.Module | None = None, function: Any = None) -> InverseLayer | None:
        """Return the inverse layer for a site, None where the table has none (it keeps its ordinary derivative)."""
        found = self.by_name(name) if self.names else None
        if found is None and module is not None and self.classes:
            found = self.by_class(type(module))
        if found is None and function is not None and self.functions:
            found = self.functions.get(function)
        return found if found is not None else self.kinds.get(kind)
