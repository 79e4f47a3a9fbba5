"""JSON lines of finished models: a run that is stopped goes on where it was."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import timm
import torch

import attribkit

Record = dict[str, Any]


SOURCES = {"meta": ["activity", "meta", "names"], "real": ["meta", "names", "real", "../oracle"]}


def versions(part: str) -> dict[str, str]:
    """Return what a part's results depend on: versions, and a digest of attribkit's sources and of the zoo's own."""
    digest = hashlib.sha256()
    here = Path(__file__).parent
    package = Path(attribkit.__file__).parent
    sources = [p for part in ("engine", "builtin") for p in (package / part).glob("*.py")]
    sources += [package / f"{name}.py" for name in ("api", "method", "targets")]
    sources += [here / f"{name}.py" for name in SOURCES[part]]
    for source in sorted(sources, key=lambda source: source.name):
        digest.update(source.name.encode() + source.read_bytes())
    return {"timm": timm.__version__, "torch": torch.__version__, "sources": digest.hexdigest()[:12]}


class Journal:
    """The results of one part of the run, one line a model.

    Parameters
    ----------
    path
        The file, called after its part; its folder is made.
    any_sources
        Whether results of other sources of the same timm and torch count too.
    """

    def __init__(self, path: Path, *, any_sources: bool = False) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.versions = versions(path.stem)
        self.compared = ["timm", "torch"] + ([] if any_sources else ["sources"])

    def read(self) -> dict[str, Record]:
        """Return the last result of each model that is still valid; a line cut short by an interrupt is no result."""
        found: dict[str, Record] = {}
        if not self.path.exists():
            return found
        for line in self.path.read_text().splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue
            if all(record["versions"].get(key) == self.versions[key] for key in self.compared):
                found[record["name"]] = record
        return found

    def add(self, record: Record) -> None:
        """Write one result: a single write, on the disk before this returns."""
        line = json.dumps({**record, "versions": self.versions}) + "\n"
        torn = self.path.exists() and self.path.stat().st_size > 0 and not self.path.read_bytes().endswith(b"\n")
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(handle, ("\n" * torn + line).encode())
            os.fsync(handle)
        finally:
            os.close(handle)
