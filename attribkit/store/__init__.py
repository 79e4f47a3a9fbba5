"""The store: what explaining a data set leaves on disk, readable while it is written."""

from attribkit.store.errors import StoreError
from attribkit.store.reader import Store, open_store
from attribkit.store.records import Record

__all__ = ["Record", "Store", "StoreError", "open_store"]
