"""A hook of the site: each notebook under docs/ becomes a page, with the outputs that are stored in it.

Nothing is executed. Text cells are Markdown as on any page, code cells are blocks of Python. Of what a cell put out,
the richest form that a page can show is taken: HTML, a picture, Markdown, text.
"""

from __future__ import annotations

import base64
import html
import json
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

_PICTURES = {"image/png": "png", "image/jpeg": "jpg"}
_ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_held: dict[str, str] = {}  # HTML outputs by their place-holder: Markdown must not read them


def on_files(files: Files, config: Any) -> Files:
    """Add a page for each notebook, beside it."""
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        text, pictures = as_markdown(json.loads(file.content_string), posixpath.basename(file.src_uri))
        folder = posixpath.dirname(file.src_uri)
        stem = posixpath.basename(file.src_uri).removesuffix(".ipynb")
        files.append(File.generated(config, posixpath.join(folder, f"{stem}.md"), content=text))
        for name, data in pictures.items():
            files.append(File.generated(config, posixpath.join(folder, name), content=data))
    return files


def on_page_content(content: str, **rest: Any) -> str:
    """Put the HTML outputs in their places."""
    return re.sub(r'<div data-output="([^"]+)"></div>', lambda match: _held[match[1]], content)


def as_markdown(notebook: dict[str, Any], name: str) -> tuple[str, dict[str, bytes]]:
    """Return a notebook as Markdown, and the pictures that it refers to by their file names."""
    pictures: dict[str, bytes] = {}
    parts = []
    stem = Path(name).stem
    for number, cell in enumerate(notebook["cells"]):
        source = "".join(cell["source"]).rstrip()
        if cell["cell_type"] == "markdown":
            parts.append(source)
        elif cell["cell_type"] == "code" and source:
            parts.append(f"```python\n{source}\n```")
            for place, output in enumerate(cell["outputs"]):
                parts.append(_output(output, f"{stem}-{number}-{place}", pictures))
    download = f'[The notebook itself]({name}){{ download="{name}" }} to run it.'
    return "\n\n".join(part for part in [*parts, download] if part) + "\n", pictures


def _output(output: dict[str, Any], key: str, pictures: dict[str, bytes]) -> str:
    if output["output_type"] == "stream":
        return _text("".join(output["text"])) if output["name"] == "stdout" else ""
    if output["output_type"] == "error":
        return _text("\n".join(output["traceback"]))
    data = output["data"]
    if "text/html" in data:
        markup = re.sub(
            r"<table(?![^>]*\sclass=)", '<table class="output"', "".join(data["text/html"])
        )  # not the theme's
        _held[key] = f'<div class="notebook-output">{markup}</div>'
        return f'<div data-output="{key}"></div>'
    for kind, suffix in _PICTURES.items():
        if kind in data:
            pictures[f"{key}.{suffix}"] = base64.b64decode("".join(data[kind]))
            told = html.escape("".join(data.get("text/plain", "picture")).strip("<>"))
            return f"![What the code above draws ({told})]({key}.{suffix})"
    if "text/markdown" in data:
        return "".join(data["text/markdown"])
    return _text("".join(data.get("text/plain", "")))


def _text(text: str) -> str:
    plain = _ESCAPES.sub("", text).rstrip()
    return f"````text\n{plain}\n````" if plain else ""
