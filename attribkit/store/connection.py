"""SQLite connections: to read an index that may come from anywhere, and to write one that must survive anything."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from attribkit.store.errors import StoreError
from attribkit.store.layout import TABLES

BUSY_SECONDS = 60.0
"""How long one waits for another's transaction: each lasts for milliseconds."""

_LIMIT_LENGTH = 0
"""SQLite's number of the limit on the length of a value."""

MAX_VALUE = 64 * 2**20
"""No text or blob of an index is longer."""


def connect(path: Path, *, write: bool) -> sqlite3.Connection:
    """Open an index.

    There is a rollback journal rather than a write-ahead log: it works on network file systems too, and an index at
    rest is one file that can be read where nothing can be written. Each transaction is brought to the disk.

    Parameters
    ----------
    path
        The file; with ``write`` it is made if it is missing.
    write
        Whether it is written.

    Raises
    ------
    StoreError
        It cannot be opened, or is no SQLite database.
    """
    mode = "rwc" if write else "ro"
    try:
        connection = _open(path, mode)
        try:
            connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
        except sqlite3.OperationalError:
            # A killed process left a transaction half done. Who reads next undoes it, and must be able to write for it.
            connection.close()
            if write:
                raise
            connection = _open(path, "rw")
            connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
        if write:
            connection.execute("PRAGMA journal_mode = TRUNCATE")
            connection.execute("PRAGMA synchronous = FULL")
    except (sqlite3.Error, UnicodeDecodeError) as error:  # the latter where SQLite's message quotes a damaged name
        raise StoreError(f"{path}: cannot be opened as the index of a store: {error}") from error
    return connection


def check_tables(connection: sqlite3.Connection, path: Path, tables: Iterable[str]) -> None:
    """Check that tables are there, and that they are tables: a view could compute for ever.

    Raises
    ------
    StoreError
        One is not.
    """
    with reading(path):
        found = dict(connection.execute("SELECT name, type || ' ' || sql FROM sqlite_master"))
    for name in tables:
        kind = str(found.get(name, "missing"))
        if not kind.lower().startswith("table create table"):
            raise StoreError(f"{path}: is not the index of a store: it has no table {name!r}")
        with reading(path):
            columns = {row[1] for row in connection.execute(f"PRAGMA table_info({name})")}
            hidden = [row for row in connection.execute(f"PRAGMA table_xinfo({name})") if row[6] != 0]
        if hidden or columns != _columns(name):
            raise StoreError(f"{path}: is not the index of a store: its table {name!r} has other columns")


@lru_cache
def _columns(name: str) -> set[str]:
    """Return the columns that a table has as attribkit makes it."""
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute(f"CREATE TABLE {name} ({TABLES[name]})")
        return {row[1] for row in connection.execute(f"PRAGMA table_info({name})")}


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what SQLite raises into a `StoreError` that names the index."""
    try:
        yield
    except (sqlite3.Error, OverflowError, UnicodeDecodeError) as error:
        raise StoreError(f"{path}: cannot be read: {error}") from error


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Do everything or nothing."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _open(path: Path, mode: str) -> sqlite3.Connection:
    name = quote(str(path.absolute()).encode("utf-8", "surrogateescape"))
    connection = sqlite3.connect(
        f"file:{name}?mode={mode}",
        uri=True,
        timeout=BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,  # each is used by one thread, and perhaps closed by another
    )
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA cell_size_check = ON")
    limited: Any = connection
    if hasattr(limited, "setlimit"):  # from Python 3.11 on
        limited.setlimit(_LIMIT_LENGTH, MAX_VALUE)
    return connection
