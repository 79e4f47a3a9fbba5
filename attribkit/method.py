"""What a method is: the base classes that plugins derive from.

A `Method` computes a map in any way it likes. An `InverseMethod` is a table: which inverse layer goes to which
operation.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from attribkit.engine.inverse import InverseLayer
from attribkit.engine.invert import invert
from attribkit.engine.table import Table
from attribkit.errors import InputError, InputTypeError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from attribkit.targets import Target


#: What the signal of a unit may start as.
UNIT_SIGNALS = ("one", "activation")


class Method:
    """An attribution method in free form.

    Subclasses set `name` and `summary` (and `source`) and define `attribute`; the options they take are its keyword
    parameters.

    Attributes
    ----------
    name : str
        What users call it: a lower-case identifier, dots allowed.
    summary : str
        One line on what it does.
    source : str
        Where it was published, and where in it: one line, or empty.
    tags : frozenset of str
        What more the conformance kit may expect (``signed``, ``deterministic``, ``inverse``, ``perturbation``,
        ``linear_in_seed``).
    expected_failures : mapping of str to str
        Checks the method cannot meet by its nature, each with the reason.
    """

    name: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    source: ClassVar[str] = ""
    tags: ClassVar[frozenset[str] | set[str]] = frozenset()
    expected_failures: ClassVar[Mapping[str, str]] = {}

    def attribute(
        self, model: nn.Module, inputs: Tensor, target: Target, **options: Any
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Return the map of a target.

        Parameters
        ----------
        model
            The model, in eval mode.
        inputs
            Float tensor [N, C, H, W]; not to be changed.
        target
            The resolved target; ``target.scores(model, x, index)`` gives differentiable scores.
        **options
            The method's own options, checked by name before the call.

        Returns
        -------
        Tensor of the inputs' shape, dtype and device; or a pair of it and a dict of further tensors
        (`Attribution.extras`).
        """
        raise NotImplementedError(f"{type(self).__name__} does not define attribute(model, inputs, target)")

    @classmethod
    def options(cls) -> dict[str, Any]:
        """Return the options by name with their defaults: the keyword parameters of `attribute` beyond the first three.

        A method whose options are not known beforehand overrides this.
        """
        parameters = list(inspect.signature(cls.attribute).parameters.values())[4:]
        kinds = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        return {p.name: p.default for p in parameters if p.kind in kinds}

    def __repr__(self) -> str:
        return f"<method {self.name or type(self).__name__}>"


class InverseMethod(Method):
    """A method given by a table of inverse layers.

    Attributes
    ----------
    inverse_layers : mapping
        Op kinds (bare strings), module classes or compiled patterns of site names to `InverseLayer` instances. A name
        beats a class (the most derived), a class beats a kind; whatever is not named keeps its ordinary derivative.
    unit_signal : {"one", "activation"}
        What the signal of a `Unit` starts as.
    """

    inverse_layers: Mapping[Any, InverseLayer] = {}
    unit_signal: ClassVar[str] = "one"
    tags: ClassVar[frozenset[str] | set[str]] = frozenset({"inverse", "signed", "deterministic"})

    def table(self) -> Table:
        """Return the table, checked.

        Raises
        ------
        InputError
            ``inverse_layers`` or ``unit_signal`` is not what it may be.
        """
        name = self.name or type(self).__name__
        if not isinstance(self.unit_signal, str) or self.unit_signal not in UNIT_SIGNALS:
            allowed = " or ".join(map(repr, UNIT_SIGNALS))
            raise InputError(f"method {name!r}: unit_signal must be {allowed}, got {self.unit_signal!r}")
        try:
            return Table(self.inverse_layers)
        except InputTypeError as error:
            raise InputTypeError(f"method {name!r}: {error}") from None

    def attribute(self, model: nn.Module, inputs: Tensor, target: Target, **options: Any) -> Tensor:
        """Return the map [N, C, H, W]: one forward pass, one way back through the table."""
        return invert(model, inputs, target, self.table(), unit_signal=self.unit_signal).values
