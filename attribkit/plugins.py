"""The process-wide plugin manager: loaded once, when it is first asked for.

`attribkit.pluginmanager` does the loading, `attribkit.registry` holds the entries. Importing this imports no torch.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable

from attribkit.errors import PluginError
from attribkit.pluginmanager import PluginManager
from attribkit.registry import Conflict, MethodEntry, ModelEntry, OperationEntry, PluginInfo

__all__ = [
    "Conflict",
    "MethodEntry",
    "ModelEntry",
    "OperationEntry",
    "PluginInfo",
    "PluginManager",
    "block",
    "manager",
    "reset",
]

DISABLE_VARIABLE = "ATTRIBKIT_DISABLE_PLUGINS"

_lock = threading.RLock()
_loading = False
_manager: PluginManager | None = None
_blocked_by_call: list[str] = []


def manager() -> PluginManager:
    """Return the process-wide manager, loading every plugin on the first call (from any thread, once).

    Raises
    ------
    PluginError
        If a plugin asks for it while it is itself being loaded.
    """
    global _manager, _loading
    with _lock:
        if _manager is None:
            if _loading:  # the lock is re-entrant: only the loading thread itself gets here
                raise PluginError("the plugins are still being loaded: a plugin must not use them when it is imported")
            _loading = True
            try:
                blocked = os.environ.get(DISABLE_VARIABLE, "").split(",") + _blocked_by_call
                _manager = PluginManager(blocked=[name.strip() for name in blocked if name.strip()])
            finally:
                _loading = False
        found = _manager
    found.report()  # outside the loading: under -W error this raises, and what was loaded stays
    return found


def block(names: Iterable[str] | str) -> None:
    """Keep the plugins with these names, or of distributions with these names, from being imported.

    Parameters
    ----------
    names
        Names of plugins or distributions; a string may list several, joined by commas.

    Raises
    ------
    PluginError
        If the plugins are loaded already: an import cannot be undone.
    """
    wanted = [name.strip() for name in (names.split(",") if isinstance(names, str) else names)]
    with _lock:
        if _manager is not None or _loading:
            raise PluginError(f"cannot block {', '.join(map(repr, wanted))}: the plugins are loaded already")
        _blocked_by_call.extend(name for name in wanted if name)


def reset() -> None:
    """Forget the process-wide manager and what `block` was told, so that the next `manager` loads anew (for tests)."""
    global _manager
    with _lock:
        _manager = None
        _blocked_by_call.clear()
