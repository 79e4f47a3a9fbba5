"""The store: what explaining a data set leaves on disk, readable while it is written.

The names below are loaded on first use: listing images needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from attribkit.store.errors import StoreError
    from attribkit.store.reader import Store, open_store
    from attribkit.store.records import Record

_SOURCES = {"Record": "records", "Store": "reader", "StoreError": "errors", "open_store": "reader"}

__all__ = ["Record", "Store", "StoreError", "open_store"]


def __getattr__(name: str) -> object:
    if name not in _SOURCES:
        raise AttributeError(f"module 'attribkit.store' has no attribute {name!r}")
    return getattr(import_module(f"attribkit.store.{_SOURCES[name]}"), name)
