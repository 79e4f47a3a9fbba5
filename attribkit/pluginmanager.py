"""The plugin manager: finds plugins, loads each on its own, and says what became of it.

A plugin that is broken or does not fit never stops the program: it is skipped, its reason is kept for ``attribkit
plugins``, and one `PluginWarning` tells of it. Nothing here imports torch; what needs torch is loaded on first use.
"""

from __future__ import annotations

import importlib.metadata
import re
import threading
import types
import warnings
from collections.abc import Iterable, Iterator
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING, Any, TypeVar

import pluggy

from attribkit import hookspecs
from attribkit._version import __version__
from attribkit.errors import InputTypeError, PluginError, PluginWarning, UnknownNameError, did_you_mean
from attribkit.registry import (
    Conflict,
    MethodEntry,
    ModelEntry,
    OperationEntry,
    PluginInfo,
    State,
    method_register,
    model_register,
    one_line,
    operation_register,
)

if TYPE_CHECKING:
    import click

GROUP = "attribkit"
BUILTIN = ("builtin", "attribkit.builtin")

_EntryT = TypeVar("_EntryT", MethodEntry, ModelEntry)


class PluginManager:
    """The built-in plugin and those that entry points name, each loaded on its own.

    Making one loads them. It gives no warning by itself: `report` does, once for each plugin that was skipped.

    Parameters
    ----------
    entry_points
        The entry points to load, after the built-in plugin; None takes every installed one of the group ``attribkit``.
    blocked
        Names of plugins or of distributions that must not be imported.

    Attributes
    ----------
    plugins
        Every plugin found, also those that were not loaded.
    methods, models
        Name or prefix to entry, without the names in conflict.
    conflicts
        The names that several plugins provide.
    """

    def __init__(self, entry_points: Iterable[EntryPoint] | None = None, blocked: Iterable[str] = ()) -> None:
        self.plugins: list[PluginInfo] = []
        self.methods: dict[str, MethodEntry] = {}
        self.models: dict[str, ModelEntry] = {}
        self.conflicts: list[Conflict] = []
        self._blocked = {_normal(name): name for name in blocked}
        self._modules: dict[PluginInfo, types.ModuleType] = {}
        self._operations: list[OperationEntry] | None = None
        self._unreported: list[str] = []
        self._lock = threading.RLock()
        self._pluggy = pluggy.PluginManager(GROUP)
        self._pluggy.add_hookspecs(hookspecs)

        builtin = EntryPoint(name=BUILTIN[0], value=BUILTIN[1], group=GROUP)
        self._load(builtin, PluginInfo(BUILTIN[0], "attribkit", __version__, BUILTIN[1]))
        for entry_point in self._installed() if entry_points is None else entry_points:
            self._load(entry_point, PluginInfo(entry_point.name, *_identity(entry_point.dist), entry_point.value))
        self._call_all("attribkit_methods", self.methods, method_register)
        self._call_all("attribkit_models", self.models, model_register)
        known = [name for plugin in self.plugins for name in (plugin.name, plugin.distribution)]
        for normal, name in self._blocked.items():
            if normal not in map(_normal, known):
                self._unreported.append(f"no plugin to block is named {name!r}: {did_you_mean(name, known)}")

    def method(self, name: str) -> MethodEntry:
        """Return the method called ``name``.

        Raises
        ------
        InputTypeError
            If ``name`` is no string.
        UnknownNameError
            If no plugin provides it; the message suggests the nearest names.
        PluginError
            If several plugins provide it; the message names their distributions.
        """
        return self._look_up(MethodEntry.noun, name, self.methods)

    def model(self, prefix: str) -> ModelEntry:
        """Return the source of the models called ``prefix/NAME``; raises as `method` does."""
        return self._look_up(ModelEntry.noun, prefix, self.models)

    @property
    def operations(self) -> list[OperationEntry]:
        """What plugins taught the engine: ``(kind, module class or function, plugin)``; the first use imports torch.

        An operation that two plugins give different kinds is left out, and a `PluginWarning` names both.
        """
        with self._lock:
            if self._operations is None:
                self._operations = []  # what a hook that asks for them sees while they are collected
                try:
                    self._operations = self._collect_operations()
                except BaseException:
                    self._operations = None
                    raise
            found = list(self._operations)
        self.report()
        return found

    def add_commands(self, cli: click.Group) -> None:
        """Add every plugin's commands to ``cli``.

        A plugin whose hook raises, takes a taken name, or adds something that is no `click.Command` adds none.
        """
        import click

        with self._lock:
            for plugin in self._implementing("attribkit_commands"):
                own = click.Group(cli.name)  # a group of its own, so that a hook that fails midway leaves nothing
                if not self._call(plugin, "attribkit_commands", cli=own):
                    continue
                wrong = _why_no_commands(own.commands)
                if wrong:
                    self._fail(plugin, wrong, hook="attribkit_commands")
                    continue
                taken = sorted(set(own.commands) & set(cli.list_commands(click.Context(cli))))
                if taken:
                    others = [other.origin for other in self.plugins if taken[0] in other.provides.get("commands", [])]
                    owner = others[0] if others else f"attribkit {__version__}"
                    reason = f"command {taken[0]!r} is already provided by {owner}"
                    self._fail(plugin, reason, hook="attribkit_commands")
                    continue
                for name, command in own.commands.items():
                    cli.add_command(command, name)
                plugin.provides["commands"] = sorted(own.commands)
        self.report()

    def report(self) -> None:
        """Give one `PluginWarning` for each plugin skipped and each conflict found since the last report."""
        with self._lock:
            pending, self._unreported = self._unreported, []
        for message in pending:
            warnings.warn(message, PluginWarning, stacklevel=3)

    def _installed(self) -> Iterator[EntryPoint]:
        """Return the installed entry points; one distribution with unreadable ones does not hide the others'."""
        try:
            found = list(importlib.metadata.entry_points(group=GROUP))
        except Exception:
            found = []
            for distribution in importlib.metadata.distributions():
                try:
                    found.extend(distribution.entry_points.select(group=GROUP))
                except Exception as error:
                    name, version = _identity(distribution)
                    plugin = PluginInfo(name, name, version, "entry_points.txt")
                    self.plugins.append(plugin)
                    self._fail(plugin, f"its entry points cannot be read: {one_line(error)}")
        yield from sorted(found, key=lambda entry_point: (entry_point.name, entry_point.value))

    def _load(self, entry_point: EntryPoint, plugin: PluginInfo) -> None:
        self.plugins.append(plugin)
        for name in (plugin.name, plugin.distribution):
            if _normal(name) in self._blocked:
                plugin.state, plugin.reason = "blocked", f"blocked by the name {self._blocked[_normal(name)]!r}"
                return
        try:
            self._register(entry_point.load(), plugin)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # an import may raise anything, SystemExit too
            if isinstance(error, PluginError):
                self._fail(plugin, str(error))
            else:
                self._fail(plugin, f"loading {entry_point.value!r} raised {one_line(error)}")

    def _register(self, module: Any, plugin: PluginInfo) -> None:
        """Check ``module`` and register it with pluggy, or raise and leave nothing registered."""
        if not isinstance(module, types.ModuleType):
            raise PluginError(f"its entry point must name a module, {plugin.module!r} is a {type(module).__name__}")
        for other, loaded in self._modules.items():
            if loaded is module:
                raise PluginError(f"its module {plugin.module!r} is already loaded as plugin {other.name!r}")
        required = getattr(module, "requires_attribkit", None)
        if required is not None and not _accepts(required, __version__):
            self._fail(plugin, f"requires attribkit {required}, this is {__version__}", "incompatible")
            return
        hooks = self._hooks(module)
        try:
            self._pluggy.register(module, name=f"{plugin.distribution}/{plugin.name}/{len(self._modules)}")
        except BaseException:
            if self._pluggy.is_registered(module):  # some versions of pluggy stop halfway
                self._pluggy.unregister(module)
            raise
        self._modules[plugin] = module
        plugin.hooks = hooks

    def _hooks(self, module: types.ModuleType) -> list[str]:
        """Return the hooks that ``module`` implements; raise when there is none, or one that does not exist."""
        specified = [name for name in vars(hookspecs) if name.startswith("attribkit_")]
        hooks = []
        for attribute in dir(module):
            options = self._pluggy.parse_hookimpl_opts(module, attribute)
            if options is None:
                continue
            hook = options.get("specname") or attribute
            if hook in specified:
                hooks.append(hook)
            elif not options.get("optionalhook"):
                raise PluginError(f"{attribute}: there is no hook {hook!r}, {did_you_mean(hook, specified)}")
        if not hooks:
            raise PluginError(f"{module.__name__} has no function marked @attribkit.hookimpl")
        return hooks

    def _implementing(self, hook: str) -> list[PluginInfo]:
        return [plugin for plugin in self._modules if hook in plugin.hooks]

    def _call(self, plugin: PluginInfo, hook: str, **arguments: Any) -> bool:
        """Call ``hook`` of ``plugin`` alone; record a failure. Returns whether it went well."""
        others = [module for other, module in self._modules.items() if other is not plugin]
        try:
            self._pluggy.subset_hook_caller(hook, others)(**arguments)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # as for an import
            self._fail(plugin, str(error) if isinstance(error, PluginError) else one_line(error), hook=hook)
        else:
            return True
        return False

    def _call_all(self, hook: str, entries: dict[str, _EntryT], make_register: Any) -> None:
        """Fill ``entries`` from every plugin; names provided twice become conflicts and stay out."""
        providers: dict[str, list[_EntryT]] = {}
        for plugin in self._implementing(hook):
            own: dict[str, _EntryT] = {}
            if self._call(plugin, hook, register=make_register(plugin, own)):
                plugin.provides[hook.removeprefix("attribkit_")] = sorted(own)
                for name, entry in own.items():
                    providers.setdefault(name, []).append(entry)
        for name, several in providers.items():
            if len(several) == 1:
                entries[name] = several[0]
            else:
                self._add_conflict(Conflict(several[0].noun, name, tuple(entry.plugin for entry in several)))

    def _collect_operations(self) -> list[OperationEntry]:
        found: list[OperationEntry] = []
        for plugin in self._implementing("attribkit_inverse_layers"):
            own: list[OperationEntry] = []
            if self._call(plugin, "attribkit_inverse_layers", register=operation_register(plugin, own)):
                plugin.provides["inverse_layers"] = sorted({entry.kind for entry in own})
                found.extend(own)
        kept = []
        for position, entry in enumerate(found):
            same = [other for other in found if other.operation is entry.operation]
            if len({other.kind for other in same}) == 1:
                if same[0] is entry:
                    kept.append(entry)
            elif not any(other.operation is entry.operation for other in found[:position]):
                name = getattr(entry.operation, "__qualname__", repr(entry.operation))
                self._add_conflict(Conflict("op kind of", name, tuple(other.plugin for other in same)))
        return kept

    def _add_conflict(self, conflict: Conflict) -> None:
        self.conflicts.append(conflict)
        self._unreported.append(str(conflict))

    def _fail(self, plugin: PluginInfo, reason: str, state: State = "failed", hook: str = "") -> None:
        where = f"{hook} of plugin" if hook else "plugin"
        self._unreported.append(f"skipped {where} {plugin.name!r} of {plugin.label}: {reason}")
        plugin.state = state
        plugin.reason = "; ".join(filter(None, [plugin.reason, f"{hook}: {reason}" if hook else reason]))

    def _look_up(self, what: str, name: str, entries: dict[str, _EntryT]) -> _EntryT:
        if not isinstance(name, str):
            raise InputTypeError(f"a {what} is named by a string, got {type(name).__name__}")
        if name in entries:
            return entries[name]
        for conflict in self.conflicts:
            if (conflict.kind, conflict.name) == (what, name):
                raise PluginError(str(conflict))
        skipped = [plugin.name for plugin in self.plugins if plugin.state != "active"]
        hint = f" (skipped plugins: {', '.join(skipped)}; see `attribkit plugins`)" if skipped else ""
        raise UnknownNameError(f"unknown {what} {name!r}: {did_you_mean(name, entries)}{hint}")


def _identity(distribution: importlib.metadata.Distribution | None) -> tuple[str, str]:
    """Return a distribution's name and version; "unknown" where its metadata was cut short."""
    try:
        name, version = (distribution.name, distribution.version) if distribution else ("", "")
    except Exception:
        name, version = "", ""
    return name or "unknown", version or "unknown"


def _why_no_commands(commands: object) -> str:
    """Return why these are no commands of a group, or "": click itself looks at them only when it needs them."""
    import click

    if not isinstance(commands, dict):
        return f"cli.commands must stay a dict, it is {type(commands).__name__}"
    for name, command in commands.items():
        if not isinstance(name, str) or not name:
            return f"a command's name must be a string that is not empty, got {name!r}"
        if not isinstance(command, click.Command):
            got = " ".join(repr(command).split())[:80]
            return f"command {name!r} must be a click.Command, got {type(command).__name__} {got}"
    return ""


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _accepts(required: object, version: str) -> bool:
    """Return whether ``version`` is among ``required``, a version specifier such as ``">=0.1,<1"``."""
    from packaging.specifiers import InvalidSpecifier, SpecifierSet  # here: few plugins state it, and it takes 20 ms

    if not isinstance(required, str):
        raise PluginError(f"requires_attribkit must be a version specifier such as '>=0.1,<1', got {required!r}")
    try:
        return SpecifierSet(required).contains(version, prereleases=True)
    except InvalidSpecifier:
        rule = "requires_attribkit must be a version specifier such as '>=0.1,<1'"
        raise PluginError(f"{rule}, got {required!r}") from None
