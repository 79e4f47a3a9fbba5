"""What plugins put into the registry: the entries, and the ``register`` callbacks that check what they are handed.

Nothing here imports torch. A method or a model that was registered by name is imported when it is first asked for.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from attribkit.errors import PluginError

if TYPE_CHECKING:
    from attribkit.method import Method

State = Literal["active", "blocked", "failed", "incompatible"]

_METHOD_NAME = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*")
_PREFIX = re.compile(r"[a-z][a-z0-9_.-]*")
_KIND = re.compile(r"[a-z][a-z0-9_]*")
_TARGET = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


def one_line(error: BaseException) -> str:
    """Return ``error`` as one line: its class, then its message with the line breaks taken out."""
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


@dataclass(eq=False)
class PluginInfo:
    """One plugin: where it comes from, what it provides and how it fares.

    Attributes
    ----------
    name
        The entry point's name (``"builtin"`` for the default methods).
    distribution, version
        The installed distribution that brings the plugin.
    module
        The entry point's value: the plugin's module.
    hooks
        Names of the hooks that it implements; empty until it was imported.
    provides
        What it registered: ``{"methods": [...], "models": [...], "inverse_layers": [...], "commands": [...]}``; the
        last two fill up on first use.
    state, reason
        How it fares, and why in one line when it is not active. A plugin that failed in one hook provides nothing of
        that hook and keeps the rest.
    """

    name: str
    distribution: str
    version: str
    module: str
    hooks: list[str] = field(default_factory=list)
    provides: dict[str, list[str]] = field(default_factory=dict)
    state: State = "active"
    reason: str = ""

    @property
    def label(self) -> str:
        """The distribution and its version."""
        return f"{self.distribution} {self.version}"

    @property
    def origin(self) -> str:
        """The distribution, its version and the plugin's name, as messages quote them."""
        return f"{self.label} (plugin {self.name!r})"


@dataclass(eq=False)
class _Entry:
    name: str
    plugin: PluginInfo = field(repr=False)
    target: str | None = None  # "module:object" as long as nothing was imported
    _loaded: Any = field(default=None, repr=False)
    noun: ClassVar[str]

    @property
    def distribution(self) -> str:
        """Name of the distribution that provides it."""
        return self.plugin.distribution

    @property
    def version(self) -> str:
        """Version of that distribution."""
        return self.plugin.version

    def _resolve(self) -> Any:
        if self.target is None:
            return self._loaded
        module, _, path = self.target.partition(":")
        try:
            found: Any = importlib.import_module(module)
            for part in path.split("."):
                found = getattr(found, part)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a plugin's import may raise anything, SystemExit too
            raise self._error(one_line(error)) from error
        return found

    def _error(self, reason: str) -> PluginError:
        return PluginError(f"{self.noun} {self.name!r} of {self.plugin.origin} cannot be used: {self.target}: {reason}")


@dataclass(eq=False)
class MethodEntry(_Entry):
    """A registered attribution method: its name, its one-line summary, where it was published and its plugin.

    ``source`` is empty where none was registered, or stated by a class that was.
    """

    summary: str = ""
    source: str = ""
    noun: ClassVar[str] = "method"

    def load(self) -> type[Method]:
        """Return the method's class, importing it when it was registered by name.

        Raises
        ------
        PluginError
            If the module or the class cannot be imported, the class is no `Method`, or its ``name``, its ``summary`` or
            the ``source``, if one was registered, is not the registered one.
        """
        if self._loaded is None:
            found = self._resolve()
            reason = _why_no_method(found) or self._why_not_as_registered(found)
            if reason:
                raise self._error(reason)
            self._loaded = found
        loaded: type[Method] = self._loaded
        return loaded

    def _why_not_as_registered(self, found: Any) -> str:
        for attribute, registered in (("name", self.name), ("summary", self.summary), ("source", self.source)):
            value = getattr(found, attribute, None)
            if value != registered and (registered or attribute != "source"):  # one may be left out
                return f"its {attribute} is {value!r}, but it is registered with {registered!r}"
        return ""


@dataclass(eq=False)
class ModelEntry(_Entry):
    """A registered source of models: ``name`` is the prefix in ``prefix/NAME``."""

    noun: ClassVar[str] = "model prefix"

    def load(self) -> Callable[..., Any]:
        """Return the loader, called as ``loader(name, weights=None)`` for a `LoadedModel`.

        Raises
        ------
        PluginError
            If the loader cannot be imported or called.
        """
        if self._loaded is None:
            found = self._resolve()
            if not callable(found):
                raise self._error(f"a loader must be callable, got {type(found).__name__}")
            self._loaded = found
        loaded: Callable[..., Any] = self._loaded
        return loaded


@dataclass(frozen=True)
class OperationEntry:
    """An operation that a plugin taught the engine."""

    kind: str
    operation: Any
    plugin: PluginInfo

    def __iter__(self) -> Any:
        """Unpack as ``(kind, module class or function, plugin)``."""
        return iter((self.kind, self.operation, self.plugin))


@dataclass(frozen=True)
class Conflict:
    """One name that several plugins provide; none of them is used. ``str()`` is the message."""

    kind: str
    name: str
    plugins: tuple[PluginInfo, ...]

    def __str__(self) -> str:
        origins = " and ".join(plugin.origin for plugin in self.plugins)
        return f"{self.kind} {self.name!r} is provided by {origins}; none is used: block or uninstall all but one"


def method_register(plugin: PluginInfo, entries: dict[str, MethodEntry]) -> Callable[..., None]:
    """Return the ``register`` of ``attribkit_methods`` for ``plugin``, filling ``entries``."""

    def register(
        method: object, target: str | None = None, *, summary: str | None = None, source: str | None = None
    ) -> None:
        if isinstance(method, str):
            if target is None:
                raise PluginError(f"register({method!r}): a name needs a target 'module:Class' and a summary")
            _check_target(method, target)
            entry = MethodEntry(
                method, plugin, target, summary=_one_line(method, summary), source=_source(method, source)
            )
        else:
            reason = _why_no_method(method)
            if reason:
                raise PluginError(f"register: expected a Method class or a name with a 'module:Class', {reason}")
            if target is not None or summary is not None or source is not None:
                raise PluginError(f"register({_label(method)}): a class states its own name and summary, give no more")
            entry = MethodEntry(
                getattr(method, "name", ""),
                plugin,
                None,
                method,
                summary=_one_line(_label(method), getattr(method, "summary", None)),
                source=_source(_label(method), getattr(method, "source", None)),
            )
        _check_name("method name", entry.name, _METHOD_NAME, "lower-case identifiers joined by dots")
        _add(entry, entries)

    return register


def model_register(plugin: PluginInfo, entries: dict[str, ModelEntry]) -> Callable[..., None]:
    """Return the ``register`` of ``attribkit_models`` for ``plugin``, filling ``entries``."""

    def register(prefix: str, loader: object) -> None:
        _check_name("model prefix", prefix, _PREFIX, "lower-case letters, digits and _ . -, from a letter on")
        if isinstance(loader, str):
            _check_target(prefix, loader)
            entry = ModelEntry(prefix, plugin, loader)
        elif callable(loader):
            entry = ModelEntry(prefix, plugin, None, loader)
        else:
            raise PluginError(f"register({prefix!r}): a loader is a callable or 'module:loader', got {_label(loader)}")
        _add(entry, entries)

    return register


def operation_register(plugin: PluginInfo, entries: list[OperationEntry]) -> Callable[..., None]:
    """Return the ``register`` of ``attribkit_inverse_layers`` for ``plugin``, filling ``entries``."""

    def register(kind: str, operation: object) -> None:
        _check_name("op kind", kind, _KIND, "a lower-case identifier")
        module_class = _loaded_attribute("torch.nn", "Module")
        is_module_class = inspect.isclass(operation) and module_class and issubclass(operation, module_class)
        if not is_module_class and (inspect.isclass(operation) or not callable(operation)):
            expected = "a torch.nn.Module class or a function"
            raise PluginError(f"register({kind!r}): expected {expected}, got {_label(operation)}")
        if not is_module_class and not _calls_are_seen(operation):
            raise PluginError(
                f"register({kind!r}): no call of {_label(operation)} would be seen: register a torch.nn.Module class, "
                "a function of torch's own, an operator of torch.ops, or a function that goes through "
                "torch.overrides.handle_torch_function"
            )
        if any(operation is known.operation for known in entries):
            raise PluginError(f"register({kind!r}): {_label(operation)} is registered twice")
        entries.append(OperationEntry(kind, operation, plugin))

    return register


def _add(entry: Any, entries: dict[str, Any]) -> None:
    if entry.name in entries:
        raise PluginError(f"register: {entry.noun} {entry.name!r} is registered twice")
    entries[entry.name] = entry


def _check_name(what: str, name: object, pattern: re.Pattern[str], rule: str) -> None:
    if not isinstance(name, str) or not pattern.fullmatch(name):
        raise PluginError(f"register: {what} must be {rule}, got {name!r}")


def _check_target(name: str, target: object) -> None:
    if not isinstance(target, str) or not _TARGET.fullmatch(target):
        raise PluginError(f"register({name!r}): the target must read 'module:object', got {target!r}")


def _one_line(label: str, text: object, what: str = "summary") -> str:
    if not isinstance(text, str) or not text.strip() or len(text.splitlines()) > 1:
        raise PluginError(f"register({label}): {what} must be one line of text, got {text!r}")
    return text


def _source(label: str, source: object) -> str:
    return "" if source is None or source == "" else _one_line(label, source, "source")


def _why_no_method(found: Any) -> str:
    """Return why ``found`` is no `Method` subclass, or "". Imports nothing: such a class has imported its base."""
    base = _loaded_attribute("attribkit.method", "Method")
    if inspect.isclass(found) and base is not None and issubclass(found, base):
        return ""
    return f"got {_label(found)}, which is no subclass of attribkit.Method"


def _calls_are_seen(function: Any) -> bool:
    """Tell whether calls of a function pass through ``__torch_function__``, where the engine looks for them."""
    operators = tuple(filter(None, (_loaded_attribute("torch._ops", n) for n in ("OpOverload", "OpOverloadPacket"))))
    if operators and isinstance(function, operators):
        return True
    if not inspect.isroutine(function) or inspect.ismethod(function):
        return False
    if inspect.isfunction(function) and "handle_torch_function" in function.__code__.co_names:
        return True
    # torch lists most of its own; of its built-in functions some, such as torch.relu_, are left out
    if inspect.isbuiltin(function) and str(function.__module__).partition(".")[0] == "torch":
        return True
    listed = _loaded_attribute("torch.overrides", "get_overridable_functions")
    return listed is not None and any(function in functions for functions in listed().values())


def _loaded_attribute(module: str, name: str) -> Any:
    return getattr(sys.modules.get(module), name, None)


def _label(thing: object) -> str:
    if inspect.isclass(thing) or inspect.isroutine(thing):
        return str(getattr(thing, "__qualname__", thing))
    return f"{type(thing).__name__} {' '.join(repr(thing).split())[:80]}"
