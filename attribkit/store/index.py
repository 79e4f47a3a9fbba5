"""Writing the index: the images and their batches, what is finished, and joining what several processes wrote."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from attribkit.store.connection import check_tables, check_whole, connect, reading, transaction
from attribkit.store.errors import StoreError
from attribkit.store.layout import (
    DONE,
    FAILED,
    FORMAT,
    INDEX,
    OF_A_RANK,
    SHARDS,
    TABLES,
    VIEW,
    Place,
    as_given,
    as_kept,
    shard_path,
)
from attribkit.store.shards import Written, checksum

__all__ = ["Batch", "Index", "Result"]

RECENT = 8
"""So many of the shards written last are read again when a run begins; of the others the length is compared."""


@dataclass(frozen=True)
class Batch:
    """Some images that follow each other, computed together: number, position of the first, and the images."""

    number: int
    first: int
    places: tuple[Place, ...]


class Result(NamedTuple):
    """What became of one image by one method, as the index keeps it."""

    position: int
    method: str
    target: str | None
    score: float | None
    part: int | None
    offset: int | None
    scale: float | None
    status: str
    error: str | None


class Index:
    """An index that is being written; of a store, or of one rank of a run.

    Parameters
    ----------
    path
        The SQLite file; it is made if it is missing.
    methods
        The run's methods, in order.
    tables
        Those it has: all, or those of a rank.

    Raises
    ------
    StoreError
        It is no such index.
    """

    def __init__(self, path: Path, methods: Sequence[str], tables: Iterable[str] = TABLES) -> None:
        self.path = path
        self._numbers = {name: number for number, name in enumerate(methods)}
        begun = path.is_file() and path.stat().st_size > 0
        self.connection = connect(path, write=True)
        try:
            if begun:
                check_whole(self.connection, path)
            with transaction(self.connection):
                for name in tables:
                    self.connection.execute(f"CREATE TABLE IF NOT EXISTS {name} ({TABLES[name]})")
                self.connection.execute("CREATE INDEX IF NOT EXISTS results_of_batches ON results (batch)")
                if "images" in tables:
                    self.connection.execute(VIEW)
            check_tables(self.connection, path, tables)
        except sqlite3.DatabaseError as error:
            self.close()
            if isinstance(error, sqlite3.OperationalError):
                raise
            raise StoreError(f"{path}: cannot be opened as the index of a store: {error}") from error
        except BaseException:
            self.close()
            raise

    @classmethod
    def of_rank(cls, path: Path, methods: Sequence[str]) -> Index:
        """Open the index of a rank, which has results alone."""
        return cls(path, methods, OF_A_RANK)

    @staticmethod
    def has_results(path: Path) -> bool:
        """Tell whether an index holds any result; one that cannot be read may."""
        try:
            with closing(connect(path, write=False)) as connection:
                return connection.execute("SELECT 1 FROM results LIMIT 1").fetchone() is not None
        except (StoreError, sqlite3.Error):
            return True

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()

    def note(self, key: str, value: Any = None) -> Any:
        """Return one of the store's notes; where it has none yet and ``value`` is given, it is noted first."""
        with reading(self.path):
            row = self.connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        if row is not None:
            try:
                return json.loads(row[0])
            except (ValueError, TypeError, RecursionError) as error:
                raise StoreError(f"{self.path}: is damaged: its note {key!r} is not understood") from error
        if value is not None:
            self.connection.execute("INSERT OR IGNORE INTO meta VALUES (?, ?)", (key, json.dumps(value)))
        return value

    def begin(self, notes: Mapping[str, Any], places: Iterable[Place], batch_size: int) -> int:
        """Note what is run, list the images that are not listed yet, and cut them into batches, all at once.

        Images that are there already keep their places and batches: a list may grow, its batches stay the same.

        Returns
        -------
        int
            How many images were added.
        """
        with transaction(self.connection):
            for key, value in {"format": FORMAT, **notes}.items():
                self.connection.execute("INSERT OR IGNORE INTO meta VALUES (?, ?)", (key, json.dumps(value)))
            first = self._number("SELECT COALESCE(MAX(position) + 1, 0) FROM images")
            position = first
            for place in places:
                row = (position, as_kept(place.image), as_kept(place.location), *place[2:])
                position += self.connection.execute(
                    "INSERT OR IGNORE INTO images VALUES (?, ?, ?, ?, ?, ?)", row
                ).rowcount
            number = self._number("SELECT COALESCE(MAX(number) + 1, 0) FROM batches")
            starts = range(first, position, batch_size)
            self.connection.executemany(
                "INSERT INTO batches VALUES (?, ?, ?)",
                ((number + i, start, min(batch_size, position - start)) for i, start in enumerate(starts)),
            )
        return position - first

    def batches(self, numbers: Iterable[int]) -> Iterator[Batch]:
        """Go through some batches with their images; each is read when it is asked for."""
        for number in numbers:
            with reading(self.path):
                found = self.connection.execute(
                    "SELECT first, count FROM batches WHERE number = ?", (number,)
                ).fetchone()
                first, count = found or (None, None)
                if not (isinstance(first, int) and isinstance(count, int)):
                    raise StoreError(f"{self.path}: is damaged: it does not say what batch {number} holds")
                rows = self.connection.execute(
                    "SELECT image, location, start, size, problem FROM images WHERE position >= ? AND position < ?"
                    " ORDER BY position",
                    (first, first + count),
                ).fetchall()
            if not all(type(r[2]) is type(r[3]) is int and isinstance(r[4], str | None) for r in rows):
                raise StoreError(f"{self.path}: is damaged: it does not say where the images of batch {number} lie")
            yield Batch(number, first, tuple(Place(as_given(r[0]), as_given(r[1]), *r[2:]) for r in rows))

    def pending(self) -> list[int]:
        """Return the numbers of the batches that are not finished."""
        with reading(self.path):
            return [
                row[0]
                for row in self.connection.execute(
                    "SELECT number FROM batches WHERE number NOT IN (SELECT number FROM finished) ORDER BY number"
                )
            ]

    def finish(
        self,
        number: int,
        results: Sequence[Result],
        shard: str | None,
        written: Written,
        seconds: Mapping[str, float],
    ) -> None:
        """Note a batch's results: all of them, or none."""
        with transaction(self.connection):
            self.connection.execute(
                "INSERT OR REPLACE INTO finished VALUES (?, ?, ?, ?, ?, ?)",
                (number, shard, written.size, written.crc, json.dumps(dict(seconds)), time.time()),
            )
            self.connection.executemany(
                "INSERT OR REPLACE INTO results VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (
                        r.position * len(self._numbers) + self._numbers[r.method],
                        *(r.position, r.method, r.target, r.score, number),
                        *(shard if r.offset is not None else None, r.part, r.offset, r.scale, r.status, r.error),
                    )
                    for r in results
                ],
            )

    def merge(self, other: Path) -> int:
        """Take over the batches that a rank's index has and this one has not; return how many.

        Done twice it changes nothing, so that it may be cut off at any moment.
        """
        with closing(connect(other, write=True)) as theirs:  # a rank that was killed may have left half a transaction
            check_tables(theirs, other, OF_A_RANK)
            with reading(other):
                ours = {row[0] for row in self.connection.execute("SELECT number FROM finished")}
                new = [row for row in theirs.execute("SELECT * FROM finished ORDER BY number") if row[0] not in ours]
            for start in range(0, len(new), 100):
                part = new[start : start + 100]
                with transaction(self.connection):
                    for row in part:
                        rows = theirs.execute("SELECT * FROM results WHERE batch = ?", (row[0],)).fetchall()
                        self.connection.executemany(
                            "INSERT OR REPLACE INTO results VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows
                        )
                        self.connection.execute("INSERT OR REPLACE INTO finished VALUES (?, ?, ?, ?, ?, ?)", row)
        return len(new)

    def succeeded(self, method: str) -> bool:
        """Tell whether a method has explained any image."""
        query = "SELECT 1 FROM results WHERE method = ? AND status = ? LIMIT 1"
        return self.connection.execute(query, (method, DONE)).fetchone() is not None

    def check_shards(self, folder: Path) -> list[int]:
        """Take back the batches whose shard is missing, cut off or changed; return their numbers.

        Every shard's length is compared, and the content of the last few.
        """
        with reading(self.path):
            rows = self.connection.execute(
                "SELECT number, shard, size, crc FROM finished WHERE shard IS NOT NULL"
                " ORDER BY moment DESC, number DESC"
            ).fetchall()
        lost = []
        for place, (number, shard, size, crc) in enumerate(rows):
            path = shard_path(folder, shard)
            try:
                found = checksum(path) if place < RECENT else Written(path.stat().st_size, crc)
            except FileNotFoundError:
                found = Written(-1, -1)
            if found != Written(size, crc):
                lost.append(number)
        self._take_back(lost)
        return sorted(lost)

    def take_back_failed(self) -> None:
        """Take back the batches in which an image failed, whole: their other images come out as they were."""
        query = "SELECT DISTINCT batch FROM results WHERE status = ?"
        self._take_back([row[0] for row in self.connection.execute(query, (FAILED,)).fetchall()])

    def _take_back(self, numbers: Iterable[int]) -> None:
        with transaction(self.connection):
            for number in numbers:
                self.connection.execute("DELETE FROM finished WHERE number = ?", (number,))
                self.connection.execute("DELETE FROM results WHERE batch = ?", (number,))

    def _number(self, query: str) -> int:
        return int(self.connection.execute(query).fetchone()[0])


def index_path(folder: Path) -> Path:
    """Return where a store's index lies."""
    return folder / INDEX


def clear_leftovers(folder: Path) -> None:
    """Remove the temporary files of runs that were killed."""
    for path in (folder / SHARDS).glob(".*.tmp"):
        path.unlink(missing_ok=True)
