"""``python -m zoo [--any-sources] [meta] [real] [page] [NAME…]``: run the zoo; see the package's docstring.

Without a part: all of them. With names of models: these alone, and no page. What is finished and passed is not done
again, unless attribkit's engine or the zoo has changed since (``--any-sources``: not even then).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from . import page
from .journal import Journal, Record
from .names import families, family, make_on_meta, own_names, parameters, smallest
from .worker import AGAIN

ROOT = Path(__file__).parents[2]
OUT = ROOT / "out" / "zoo"
PAGE = ROOT / "docs" / "zoo.md"


def run(part: str, names: list[str], journal: Journal) -> dict[str, Record]:
    """Check the models of one part that have not passed yet, one process at a time; return all results."""
    finished = journal.read()
    todo = [name for name in names if name not in finished or finished[name]["failures"]]
    print(f"{part}: {len(names) - len(todo)} of {len(names)} models have passed before", flush=True)
    while todo:
        before = {name: finished.get(name) for name in todo}
        command = [sys.executable, "-m", "zoo.worker", part, str(journal.path), *todo]
        path = os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]))
        status = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, check=False).returncode
        finished = journal.read()
        todo = [name for name in todo if finished.get(name) is before[name] or finished.get(name) == before[name]]
        if todo and status not in (0, AGAIN):
            name = todo.pop(0)
            journal.add({"name": name, "failures": [f"the process ended with status {status}"]})
            print(f"{part} {name} FAILED: the process ended with status {status}", flush=True)
            finished = journal.read()
    return {name: finished[name] for name in names}


def sizes(known: dict[str, Record]) -> list[tuple[str, int]]:
    """Return each model's number of parameters, from the first part's results where they are there."""
    return [
        (name, known[name]["parameters"] if "parameters" in known.get(name, {}) else parameters(make_on_meta(name)))
        for name in own_names()
    ]


def unfinished(meta: dict[str, Record], real: dict[str, Record]) -> str:
    """Say what a page of these results would lack; empty where it is all there."""
    models = [name for name in own_names() if name not in meta]
    lost = set(families()) - {family(name) for name in real}
    if not models and not lost:
        return ""
    return (
        f"{len(models)} models on the meta device and {len(lost)} families with real numbers have no result of the "
        "present sources; run make zoo, or take earlier ones with --any-sources"
    )


def main(arguments: list[str]) -> int:
    """Run the parts asked for; 1 where a model failed."""
    any_sources = "--any-sources" in arguments
    words = [word for word in arguments if word != "--any-sources"]
    parts = [word for word in words if word in ("meta", "real", "page")] or ["meta", "real", "page"]
    chosen = [word for word in words if word not in ("meta", "real", "page")]
    for name in chosen:
        family(name)  # an unknown name is an error now, not after an hour
    meta = Journal(OUT / "meta.jsonl", any_sources=any_sources)
    real = Journal(OUT / "real.jsonl", any_sources=any_sources)
    results: list[Record] = []
    if "meta" in parts:
        results += run("meta", chosen or own_names(), meta).values()
    if "real" in parts:
        results += run("real", chosen or list(smallest(sizes(meta.read())).values()), real).values()
    failed = [record for record in results if record["failures"]]
    for record in failed:
        print(f"{record['name']}: {'; '.join(record['failures'])[:500]}")
    print(f"{len(results) - len(failed)} of {len(results)} passed")
    if "page" in parts and not chosen:
        if lacking := unfinished(meta.read(), real.read()):
            print(f"{PAGE.relative_to(ROOT)} is left as it is: {lacking}")
            return 1
        page.write(PAGE, meta.read(), real.read(), meta.versions)
        print(f"Wrote {PAGE.relative_to(ROOT)}")
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
