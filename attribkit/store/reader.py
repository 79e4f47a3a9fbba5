"""Reading a store: records in the order of the images, while a run is going on too."""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from attribkit.store.connection import check_tables, connect, fetch, reading
from attribkit.store.errors import StoreError
from attribkit.store.layout import DONE, FORMAT, INDEX, TABLES, as_given, shard_path, tensor_name
from attribkit.store.records import COLUMNS, Record, record_from
from attribkit.store.shards import Shard

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Store", "open_store"]

# COUNT(id) and not COUNT(*): SQLite counts the latter in one step, which in a damaged tree may have no end.

_PAGE = 500
"""Records fetched at once: a reader that takes its time must not hold up who writes."""

_FROM = f"SELECT {COLUMNS} FROM results JOIN images USING (position)"


def open_store(path: str | os.PathLike[str]) -> Store:
    """Open what a data-set run wrote.

    Nothing in a store is executed, whoever made it, and nothing outside its folder is read.

    Parameters
    ----------
    path
        The folder that was ``--out``.

    Returns
    -------
    Store
        A sequence of the records finished so far.

    Raises
    ------
    StoreError
        There is no store, or it is damaged.
    """
    return Store(path)


class Store(Sequence[Record]):
    """The finished records of a store, in the order of the images and, for an image, of the methods.

    ``len``, iteration and indexing see what is finished at that moment; a run that goes on adds to it.

    Attributes
    ----------
    path : Path
        Its folder.
    about : dict
        What was run, as the store notes it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._index = self.path / INDEX
        if not self._index.is_file():
            what = "holds no store" if self.path.is_dir() else "there is no such folder"
            raise StoreError(f"{str(self.path)!r}: {what} ({INDEX} is missing)")
        self._local = threading.local()
        check_tables(self._connection(), self._index, TABLES)
        form = self.note("format")
        if form != FORMAT:
            raise StoreError(f"{str(self.path)!r}: is of the format {form!r:.60}, and this attribkit reads {FORMAT!r}")
        about = self.note("run")
        if not isinstance(about, dict):
            raise StoreError(f"{self._index}: is damaged: it does not say what was run")
        self.about: dict[str, Any] = about
        self._whole: int | None = None
        self._shard = lru_cache(maxsize=4)(lambda name: Shard(shard_path(self.path, name)))

    def __len__(self) -> int:
        """Return how many records are finished."""
        return int(self._one("SELECT COUNT(id) FROM results"))

    def __iter__(self) -> Iterator[Record]:
        """Go through the finished records."""
        return self._records("", ())

    @overload
    def __getitem__(self, index: int) -> Record: ...

    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...

    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        """Return a record, or a list of some."""
        if isinstance(index, slice):
            return self._slice(range(*index.indices(len(self))))
        if self._whole is None and self.complete:  # nothing is missing any more: the number is the key
            self._whole = len(self)
        if self._whole is not None and -self._whole <= index < self._whole:
            rows = self._rows(f"{_FROM} WHERE id = ?", (index % self._whole,))
            if rows:
                return record_from(rows[0], self)
        count = len(self)
        if not -count <= index < count:
            raise IndexError(f"record {index} is out of range: {count} are finished")
        rows = self._rows(f"{_FROM} ORDER BY id LIMIT 1 OFFSET ?", (index % count,))
        if not rows:
            raise StoreError(f"{self._index}: is damaged: record {index} belongs to no image")
        return record_from(rows[0], self)

    def _slice(self, places: range) -> list[Record]:
        if not places:
            return []
        first, last = min(places), max(places)
        rows = self._rows(f"{_FROM} ORDER BY id LIMIT ? OFFSET ?", (last - first + 1, first))
        return [record_from(rows[place - first], self) for place in places if place - first < len(rows)]

    def __repr__(self) -> str:
        """Show where it is and how far."""
        return f"Store({str(self.path)!r}, {len(self)} of {self.expected} records)"

    def __reduce__(self) -> Any:
        return open_store, (self.path,)

    @property
    def expected(self) -> int:
        """How many records there are when the run has ended."""
        return self.images * len(self.methods)

    @property
    def images(self) -> int:
        """How many images there are, finished or not."""
        return int(self._one("SELECT COUNT(position) FROM images"))

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods' names."""
        found = self.about.get("methods")
        if not isinstance(found, dict) or not found:
            raise StoreError(f"{self._index}: is damaged: it names no methods")
        return tuple(found)

    @property
    def complete(self) -> bool:
        """Whether every record is finished."""
        return len(self) == self.expected

    def counts(self) -> tuple[int, int]:
        """Return how many images have a map, and of how many something failed."""
        query = "SELECT COUNT(DISTINCT position) FROM results WHERE status {} ?"
        return tuple(int(self._one(query.format(sign), (DONE,))) for sign in ("=", "<>"))  # type: ignore[return-value]

    def failures(self) -> Iterator[Record]:
        """Go through the records that failed."""
        return self._records("AND status <> ?", (DONE,))

    def reasons(self) -> list[tuple[str, int]]:
        """Return why images failed, and how many for each reason, the most frequent first."""
        query = (
            "SELECT error, COUNT(DISTINCT position) FROM results WHERE status <> ? GROUP BY error ORDER BY 2 DESC, 1"
        )
        return [(str(reason), int(count)) for reason, count in self._rows(query, (DONE,))]

    def of_images(self, first: int, count: int) -> Iterator[Record]:
        """Go through the finished records of ``count`` images from the image ``first`` on."""
        each = len(self.methods)
        return self._records("AND id < ?", ((first + count) * each,), first * each - 1)

    def names(self) -> Iterator[tuple[int, str]]:
        """Go through all images, finished or not: position and name."""
        last = -1
        query = f"SELECT position, image FROM images WHERE position > ? ORDER BY position LIMIT {_PAGE}"
        while rows := self._rows(query, (last,)):
            for position, image in rows:
                self._check_order(last, position)
                yield position, as_given(image)
                last = position

    def place(self, position: int) -> tuple[str, str, int, int, str | None]:
        """Return an image's name, and where its bytes lie: file, start, length (0, 0: all of it), or what is wrong."""
        query = "SELECT image, location, start, size, problem FROM images WHERE position = ?"
        for image, location, start, size, problem in self._rows(query, (position,)):
            if isinstance(start, int) and isinstance(size, int) and (problem is None or isinstance(problem, str)):
                return as_given(image), as_given(location) or as_given(image), start, size, problem
        raise StoreError(f"{self._index}: is damaged: it has no image {position}")

    def seconds(self, batch: int) -> dict[str, float]:
        """Return how long each method took on a batch, per image."""
        rows = self._rows("SELECT seconds FROM finished WHERE number = ?", (batch,))
        try:
            found = json.loads(rows[0][0])
            return {str(name): float(value) for name, value in found.items()}
        except (ValueError, TypeError, IndexError, AttributeError, RecursionError) as error:
            raise StoreError(f"{self._index}: is damaged: the seconds of batch {batch} are not understood") from error

    def note(self, key: str) -> Any:
        """Return one of the store's notes; None where there is no such."""
        rows = self._rows("SELECT value FROM meta WHERE key = ?", (key,))
        try:
            return json.loads(rows[0][0]) if rows else None
        except (ValueError, TypeError, RecursionError) as error:
            raise StoreError(f"{self._index}: is damaged: its note {key!r} is not understood") from error

    def tensor(self, record: Record, kind: str) -> Tensor:
        """Return a record's row of its method's ``values`` or ``extras.NAME``."""
        if record.shard is None or record.offset is None:
            raise StoreError(f"{self._index}: is damaged: it does not say where the map of {record.image!r} lies")
        return self._shard(record.shard).row(tensor_name(record.method, kind, record.part or 0), record.offset)

    def extras(self, record: Record) -> dict[str, Tensor]:
        """Return a record's further tensors."""
        if record.shard is None:
            return {}
        start, end = tensor_name(record.method, "extras.\0", record.part or 0).split("\0")
        names = self._shard(record.shard).names
        kinds = [name.removeprefix(start).removesuffix(end) for name in names if name.startswith(start)]
        kinds = [kind for kind in kinds if "." not in kind and f"{start}{kind}{end}" in names]
        return {kind: self.tensor(record, f"extras.{kind}") for kind in kinds}

    def to_pandas(self) -> Any:
        """Return the index as a ``pandas.DataFrame``, a row a finished record, without the maps.

        Raises
        ------
        StoreError
            pandas is not installed.
        """
        try:
            pandas: Any = import_module("pandas")
        except ImportError:
            raise StoreError("to_pandas() needs pandas: pip install pandas") from None
        columns = ("image", "method", "target", "score", "status", "error", "shard", "offset")
        rows = [tuple(getattr(record, name) for name in columns) for record in self]
        return pandas.DataFrame(rows, columns=list(columns))

    def _records(self, where: str, values: tuple[Any, ...], last: int = -1) -> Iterator[Record]:
        while True:
            rows = self._rows(f"{_FROM} WHERE id > ? {where} ORDER BY id LIMIT {_PAGE}", (last, *values))
            for row in rows:
                self._check_order(last, row[0])
                yield record_from(row, self)
                last = row[0]
            if len(rows) < _PAGE:
                return

    def _check_order(self, before: int, number: Any) -> None:
        """Check that rows come in order: in a damaged table they may go round in circles."""
        if not isinstance(number, int) or number <= before:
            raise StoreError(f"{self._index}: is damaged: its rows are out of order")

    def _one(self, query: str, values: tuple[Any, ...] = ()) -> Any:
        return self._rows(query, values)[0][0]

    def _rows(self, query: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        with reading(self._index):
            return fetch(self._connection(), self._index, query, values)

    def _connection(self) -> sqlite3.Connection:
        """Return this thread's connection; one does not survive a fork."""
        held: _Held | None = getattr(self._local, "held", None)
        if held is None or held.pid != os.getpid():
            held = self._local.held = _Held(connect(self._index, write=False))
        return held.connection


class _Held:
    """A connection that is closed with the thread, or the store, that uses it."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection, self.pid = connection, os.getpid()

    def __del__(self) -> None:
        self.connection.close()
