"""SQLite connections: to read an index that may come from anywhere, and to write one that must survive anything."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from attribkit._kept import one_line
from attribkit.store.errors import StoreError
from attribkit.store.layout import TABLES

_ANY = "SELECT 1 FROM sqlite_master LIMIT 1"

BUSY_SECONDS = 60.0
"""How long one waits for another's transaction: each lasts for milliseconds."""

_LIMIT_LENGTH = 0
"""SQLite's number of the limit on the length of a value."""

MAX_VALUE = 64 * 2**20
"""No text or blob of an index is longer, nor longer than the file (but for `_LEAST_VALUE`)."""

_LEAST_VALUE = 2**20

_STRIDE = 10_000
_STEPS, _STEPS_A_BYTE = 20_000_000, 10
"""A query may take so many steps of SQLite's machine: a damaged tree whose branches meet again has no end."""

_ROWS, _ROWS_A_BYTE = 64 * 2**20, 16
"""The texts of a query's rows may be so long together: a chain of pages that bites its tail makes each 64 MB."""

_MAGIC = b"SQLite format 3\0"
_JOURNAL_MAGIC = b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7"


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
    _check_files(path)
    connection = None
    try:
        connection = _open(path, mode)
        try:
            fetch(connection, path, _ANY)
        except sqlite3.OperationalError:
            # A killed process left a transaction half done. Who reads next undoes it, and must be able to write for it.
            connection.close()
            if write:
                raise
            connection = _open(path, "rw")
            fetch(connection, path, _ANY)
        if write:
            connection.execute("PRAGMA journal_mode = TRUNCATE")
            connection.execute("PRAGMA synchronous = FULL")
    except (sqlite3.Error, UnicodeDecodeError, StoreError) as error:  # the second: its message quotes a damaged name
        if connection is not None:
            connection.close()
        if isinstance(error, StoreError):
            raise
        raise StoreError(f"{path}: cannot be opened as the index of a store: {one_line(error)}") from error
    return connection


def fetch(
    connection: sqlite3.Connection, path: Path, query: str, values: Sequence[object] = ()
) -> list[tuple[Any, ...]]:
    """Return a query's rows, in time and memory that the index's length bounds.

    Raises
    ------
    StoreError
        The index is damaged so that the query has no end.
    sqlite3.Error
        It is damaged in another way.
    """
    size = os.stat(path).st_size
    left = (_STEPS + _STEPS_A_BYTE * size) // _STRIDE
    room = _ROWS + _ROWS_A_BYTE * size

    def spent() -> bool:
        nonlocal left
        left -= 1
        return left < 0

    rows = []
    connection.set_progress_handler(spent, _STRIDE)
    try:
        for row in connection.execute(query, values):
            rows.append(row)
            for value in row:
                if isinstance(value, str | bytes):
                    room -= len(value)
            if room < 0:
                raise StoreError(f"{path}: is damaged: its rows say more than its {size:,} bytes can hold")
    except sqlite3.OperationalError as error:
        if left >= 0:
            raise
        raise StoreError(f"{path}: is damaged: reading it takes more steps than its {size:,} bytes can need") from error
    finally:
        connection.set_progress_handler(None, 0)
    return rows


def check_whole(connection: sqlite3.Connection, path: Path) -> None:
    """Check an index that was there before and is to be written: every page is read, once.

    Raises
    ------
    StoreError
        It is damaged.
    """
    with reading(path):
        found = str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
    if found != "ok":
        raise StoreError(f"{path}: is damaged: {one_line(found)}")


def _check_files(path: Path) -> None:
    """Refuse files beside an index that would make SQLite write or delete what lies elsewhere.

    A journal can name another file, a "super-journal", that SQLite deletes once the journal is played back. attribkit
    never writes two databases at once, so that none of its journals does. Nor does it use a write-ahead log.
    """
    for name in (path, *(path.with_name(path.name + end) for end in ("-journal", "-wal", "-shm"))):
        if name.is_symlink():
            raise StoreError(f"{name}: is a link; what belongs to a store are files of its own")
    try:
        with open(path, "rb") as file:
            head = file.read(20)
        if head[:16] == _MAGIC and head[18:20] != b"\1\1":
            raise StoreError(f"{path}: is not the index of a store: it is written ahead, which attribkit never does")
        with open(path.with_name(path.name + "-journal"), "rb") as file:
            file.seek(-min(8, os.fstat(file.fileno()).st_size), os.SEEK_END)
            if file.read() == _JOURNAL_MAGIC and file.tell() > 8:
                raise StoreError(f"{path}-journal: belongs to several databases, which no journal of attribkit's does")
    except OSError:  # there is none yet, or SQLite says what is wrong
        return


def check_tables(connection: sqlite3.Connection, path: Path, tables: Iterable[str]) -> None:
    """Check that tables are there, and that they are tables: a view could compute for ever.

    Raises
    ------
    StoreError
        One is not.
    """
    with reading(path):
        found = dict(fetch(connection, path, "SELECT name, type || ' ' || sql FROM sqlite_master"))
    if any(str(kind).lower().startswith("trigger") for kind in found.values()):
        raise StoreError(f"{path}: is not the index of a store: it has a trigger, which would run when it is written")
    for name in tables:
        kind = str(found.get(name, "missing"))
        if not kind.lower().startswith("table create table"):
            raise StoreError(f"{path}: is not the index of a store: it has no table {name!r}")
        with reading(path):
            columns = {row[1] for row in fetch(connection, path, f"PRAGMA table_info({name})")}
            hidden = [row for row in fetch(connection, path, f"PRAGMA table_xinfo({name})") if row[6] != 0]
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
    except (sqlite3.Error, OSError, MemoryError, OverflowError, UnicodeDecodeError) as error:
        raise StoreError(f"{path}: cannot be read: {one_line(error)}") from error


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
        size = path.stat().st_size if path.exists() else 0
        limited.setlimit(_LIMIT_LENGTH, MAX_VALUE if mode == "rwc" else min(MAX_VALUE, max(_LEAST_VALUE, size)))
    return connection
