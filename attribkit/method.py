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
        name = _called(self)
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


def tags_of(method: Method | type[Method]) -> frozenset[str]:
    """Return a method's tags.

    Raises
    ------
    InputTypeError
        They are no set of strings.
    """
    tags: Any = method.tags
    if not isinstance(tags, (set, frozenset, list, tuple)) or not all(isinstance(tag, str) for tag in tags):
        raise InputTypeError(f"method {_called(method)!r}: tags must be a set of strings, got {_short(tags)}")
    return frozenset(tags)


def failures_of(method: Method | type[Method]) -> dict[str, str]:
    """Return the checks that a method says it cannot meet, each with the reason.

    Raises
    ------
    InputError
        They are no dict of strings, or a reason is empty.
    """
    return checked_failures(method.expected_failures, f"method {_called(method)!r}: ")


def checked_failures(failures: Any, whose: str = "") -> dict[str, str]:
    """Return ``expected_failures``, checked; raises as `failures_of` does, beginning with ``whose``."""
    if not isinstance(failures, Mapping):
        rule = "expected_failures must be a dict of checks to reasons"
        raise InputTypeError(f"{whose}{rule}, got {_short(failures)}")
    for check, reason in failures.items():
        if not isinstance(check, str):
            raise InputTypeError(f"{whose}expected_failures must have names of checks as keys, got {_short(check)}")
        if not isinstance(reason, str) or not reason.strip():
            rule = f"expected_failures[{check!r}] must be the reason in words"
            raise (InputError if isinstance(reason, str) else InputTypeError)(f"{whose}{rule}, got {_short(reason)}")
    return dict(failures)


def _called(method: Method | type[Method]) -> str:
    cls = method if isinstance(method, type) else type(method)
    return method.name if isinstance(method.name, str) and method.name else cls.__name__


def _short(value: object) -> str:
    return " ".join(repr(value).split())[:80]
