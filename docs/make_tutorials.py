"""Make the notebooks of docs/tutorials: from each ``NAME.py`` in percent format a ``NAME.ipynb``, with its outputs.

    python docs/make_tutorials.py [NAME ...]

A notebook is the same whenever it is made: no times, no paths, no random names. It runs on one thread in an empty
folder.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from traitlets.config import Config

TUTORIALS = Path(__file__).parent / "tutorials"
LARGEST = 1_500_000
"""No notebook has more bytes."""

METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}

_WARNINGS = "ignore:IProgress not found"
"""tqdm says so on import where ipywidgets are missing, with its path."""

_CELL = re.compile(r"^# %%(?P<kind> \[markdown\])?\n", re.MULTILINE)


def names() -> list[str]:
    """Return the tutorials' names."""
    return sorted(path.stem for path in TUTORIALS.glob("*.py"))


def read(name: str) -> Any:
    """Return a tutorial as a notebook without outputs. What stands above the first cell is left out."""
    parts = _CELL.split((TUTORIALS / f"{name}.py").read_text("utf-8"))[1:]
    cells = []
    for number, (kind, text) in enumerate(zip(parts[::2], parts[1::2], strict=True)):
        if kind:
            lines = [line.removeprefix("#").removeprefix(" ") for line in text.strip().splitlines()]
            cell = nbformat.v4.new_markdown_cell("\n".join(lines))
        else:
            cell = nbformat.v4.new_code_cell(text.strip())
        cell.id = f"{number:02d}"
        cells.append(cell)
    return nbformat.v4.new_notebook(cells=cells, metadata=METADATA, nbformat_minor=5)


def run(notebook: Any, timeout: int = 300) -> Any:
    """Run a notebook's cells, in an empty folder and on one thread.

    Raises
    ------
    nbclient.exceptions.CellExecutionError
        A cell raised.
    """
    before = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "PYTHONHASHSEED", "PYTHONWARNINGS")}
    os.environ.update(OMP_NUM_THREADS="1", PYTHONHASHSEED="0", PYTHONWARNINGS=_WARNINGS)
    try:
        with tempfile.TemporaryDirectory() as folder:
            # sockets in the file system: no port is open to others on the machine
            config = Config({"KernelManager": {"transport": "ipc", "ip": str(Path(folder, "kernel"))}})
            resources = {"metadata": {"path": folder}}
            NotebookClient(notebook, timeout=timeout, record_timing=False, resources=resources, config=config).execute()
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
    return notebook


def cleaned(notebook: Any) -> Any:
    """Return a run notebook without places where bars were, and without what the kernel says of itself."""
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = _joined([output for output in cell.outputs if not _is_gone(output)])
            for output in cell.outputs:
                output.pop("transient", None)
                _keep_smaller(output.get("data", {}), "image/jpeg", "image/png")
    notebook.metadata = METADATA
    return notebook


def _joined(outputs: list[Any]) -> list[Any]:
    """Join what was printed in one go: how many pieces the kernel sends it in depends on the time between."""
    found: list[Any] = []
    for output in outputs:
        before = found[-1] if found else None
        if before is not None and output.output_type == before.output_type == "stream" and output.name == before.name:
            before.text += output.text
        else:
            found.append(output)
    return found


def _is_gone(output: Any) -> bool:
    """Tell whether an output is a place where a progress bar was."""
    return output.output_type == "display_data" and not any(output.data.values())


def _keep_smaller(data: Any, *kinds: str) -> None:
    """Keep of a picture in several forms the smallest."""
    for kind in sorted((kind for kind in kinds if kind in data), key=lambda kind: len(data[kind]))[1:]:
        del data[kind]


def main() -> None:
    """Make the notebooks that the command line names, or all."""
    for name in sys.argv[1:] or names():
        text = nbformat.writes(cleaned(run(read(name)))) + "\n"
        if len(text) > LARGEST:
            raise SystemExit(f"{name}.ipynb would have {len(text):,} bytes, more than {LARGEST:,}")
        (TUTORIALS / f"{name}.ipynb").write_text(text, "utf-8")
        print(f"{name}.ipynb: {len(text):,} bytes")


if __name__ == "__main__":
    main()
