"""How a store lies on disk: file names, the index's tables, the format's version.

Nothing here touches a file. ``docs/data-sets.md`` says the same in prose.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

from attribkit.store.errors import StoreError

__all__ = ["DONE", "FAILED", "FORMAT", "INDEX", "SHARDS", "Place", "shard_path", "tensor_name"]

FORMAT = "attribkit store 1"
INDEX = "index.sqlite"
SHARDS = "shards"
RANKS = "ranks"
LOCK = "lock"

DONE = "done"
FAILED = "failed"

_SHARD = re.compile(r"[0-9]{8,12}\.safetensors")
_RANK = re.compile(r"[0-9]{5}\.sqlite")

TABLES = {
    "meta": "key TEXT PRIMARY KEY, value TEXT NOT NULL",
    # location and start: where the bytes lie, where that is not the file `image`; problem: why there are none
    "images": "position INTEGER PRIMARY KEY, image NOT NULL, location NOT NULL DEFAULT '', start INTEGER NOT NULL"
    " DEFAULT 0, size INTEGER NOT NULL DEFAULT 0, problem TEXT, UNIQUE (image, location, start)",
    "batches": "number INTEGER PRIMARY KEY, first INTEGER NOT NULL, count INTEGER NOT NULL",
    "finished": "number INTEGER PRIMARY KEY, shard TEXT, size INTEGER NOT NULL, crc INTEGER NOT NULL,"
    " seconds TEXT NOT NULL, moment REAL NOT NULL",
    "results": "id INTEGER PRIMARY KEY, position INTEGER NOT NULL, method TEXT NOT NULL, target TEXT, score REAL,"
    " batch INTEGER NOT NULL, shard TEXT, part INTEGER, offset INTEGER, scale REAL, status TEXT NOT NULL, error TEXT",
}
"""The index's tables. A rank's own index has the last two alone."""

OF_A_RANK = ("finished", "results")

VIEW = (
    "CREATE VIEW IF NOT EXISTS records AS SELECT image, target, score, method, shard, offset, status, error"
    " FROM results JOIN images USING (position) ORDER BY id"
)
"""For people who look into the index with tools of their own; attribkit itself reads the tables."""


class Place(NamedTuple):
    """An image: its name as given, and where its bytes lie.

    ``location`` is the file, where it is not ``image`` itself; ``start`` and ``size`` are a part of it (0, 0: all of
    it). ``problem`` is why it cannot be read, where that is known already.
    """

    image: str
    location: str = ""
    start: int = 0
    size: int = 0
    problem: str | None = None

    @property
    def file(self) -> str:
        """The file that holds it."""
        return self.location or self.image


def shard_name(batch: int) -> str:
    """Return the file name of a batch's shard."""
    return f"{batch:08d}.safetensors"


def shard_path(folder: Path, name: str) -> Path:
    """Return where a shard lies.

    Raises
    ------
    StoreError
        The name is not one that attribkit gives: it could lead out of the store.
    """
    if not isinstance(name, str) or not _SHARD.fullmatch(name):
        raise StoreError(f"{str(folder)!r}: its index names a shard {_shown(name)}, which is no name of a shard")
    path = folder / SHARDS / name
    if (folder / SHARDS).is_symlink() or path.is_symlink():
        raise StoreError(f"{path}: is a link; a shard is a file of its own")
    return path


def tensor_name(method: str, kind: str, part: int) -> str:
    """Return what a shard calls a method's ``values`` or ``extras.NAME`` of the maps of one size."""
    return f"{method}/{kind}" + (f".{part}" if part else "")


def rank_files(folder: Path) -> list[Path]:
    """Return the indices of ranks, in their order."""
    found = folder / RANKS
    return sorted(path for path in found.iterdir() if _RANK.fullmatch(path.name)) if found.is_dir() else []


def rank_file(folder: Path, rank: int) -> Path:
    """Return where the index of a rank lies."""
    return folder / RANKS / f"{rank:05d}.sqlite"


def as_kept(name: str) -> str | bytes:
    """Return a file name as the index keeps it: text, or bytes where it is no text."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return os.fsencode(name)
    return name


def as_given(kept: object) -> str:
    """Return a file name from the index.

    Raises
    ------
    StoreError
        It is neither text nor bytes.
    """
    if isinstance(kept, bytes):
        return os.fsdecode(kept)
    if not isinstance(kept, str):
        raise StoreError(f"the index holds {_shown(kept)} where an image's name belongs")
    return kept


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
