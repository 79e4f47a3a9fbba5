"""What can be taken away: a result as numbers, as a figure, and as the Python code that makes both."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from attribkit.app import drawing
from attribkit.app.session import Session
from attribkit.app.subject import Found
from attribkit.report.sections import method_title


@dataclass(frozen=True)
class Item:
    """A result that can be taken away.

    Attributes
    ----------
    key
        What the page calls it.
    name
        What a reader calls it; the figure's title.
    stem
        The name of its files, without their suffix.
    details
        What stands below the name in the figure's caption.
    compute
        Returns the result, computed now or before.
    call
        The Python expression that makes it.
    """

    key: str
    name: str
    stem: str
    details: str
    compute: Callable[[], Found] = field(repr=False)
    call: str


def items(session: Session) -> list[Item]:
    """Return what can be taken away of what is looked at: the methods' maps, the occlusion, the feature map."""
    subject, view, target = session.subject, session.view, session.target
    if subject is None:
        return []
    found = []
    details = f"{subject.picture.name}; {view.model}"
    if target is not None:
        words = subject.label(target).partition(",")[0]
        for method in dict.fromkeys((*view.methods, "occlusion")):
            options = view.occlusion_options if method == "occlusion" else {}
            name = f"{method_title(method)} of “{words}”"
            found.append(
                Item(
                    method,
                    name,
                    method,
                    details,
                    partial(subject.attribution, method, target, options),
                    _call("attribute", ["loaded.model", "inputs"], method=method, target=target, **options),
                )
            )
    layer, channel, projector = session.layer, session.channel, view.projector
    name = f"{method_title(projector)} of feature map {channel} of {layer}"
    found.append(
        Item(
            "unit",
            name,
            f"{_plain(layer)}-{channel}.{projector}",
            details,
            lambda: subject.unit(layer, channel, projector).found,
            _call("project", ["loaded.model", "inputs", _quoted(layer), f"[{channel}]"], method=projector),
        )
    )
    return found


def numbers(item: Item) -> bytes:
    """Return a result as a safetensors file, which `attribkit.Attribution.load` reads."""
    with tempfile.TemporaryDirectory(prefix="attribkit-app-") as folder:
        return item.compute().result.save(Path(folder) / "map.safetensors").read_bytes()


def picture(session: Session, item: Item) -> bytes:
    """Return a result as a figure, drawn as the page shows it: a PNG."""
    if session.subject is None:
        raise ValueError("nothing is looked at")
    return drawing.figure(session.subject.view, item.compute().values, session.view.display, item.name, item.details)


def code(session: Session, item: Item) -> str:
    """Return Python code that computes a result, saves it and draws the figure, as the page does."""
    subject, display = session.subject, session.view.display
    if subject is None:
        raise ValueError("nothing is looked at")
    imports, lines = subject.picture.imports, subject.picture.code
    head = ["from pathlib import Path", "", "import attribkit as ak"]
    head += ["from attribkit.app.drawing import figure", "from attribkit.app.view import Display"]
    head += [imports, "from attribkit.report.figures import model_view"]
    values = "result.numpy()[0]" if item.key != "unit" else "result.numpy()[0, 0]"
    loading = ", ".join(session.shelf.arguments(session.view.model, session.view.weights))
    body = [
        "",
        f"loaded = ak.load_model({loading})",
        lines,
        "inputs = loaded.preprocess(picture)[None]",
        "",
        f"result = {item.call}",
        f'result.save("{item.stem}.safetensors")',
        "",
        "view = model_view(loaded.denormalize(inputs[0]).numpy())",
        f"display = Display({display.opacity:g}, {_quoted(display.sign)}, {display.percentile:g})",
        f"title, details = {_quoted(item.name)}, {_quoted(item.details)}",
        f'Path("{item.stem}.png").write_bytes(figure(view, {values}, display, title, details))',
    ]
    return "\n".join([*head, *body]) + "\n"


def _call(function: str, arguments: list[str], **options: Any) -> str:
    named = [f"{name}={_quoted(value)}" for name, value in options.items()]
    return f"ak.{function}({', '.join([*arguments, *named])})"


def _quoted(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def _plain(layer: str) -> str:
    return "".join(char if char.isalnum() or char in ".-_" else "_" for char in layer)
