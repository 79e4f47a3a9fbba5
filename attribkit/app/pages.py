"""The page's parts as HTML: everything that comes from a model, a file or a link is escaped by the templates."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from functools import lru_cache
from importlib import resources
from typing import Any

import jinja2
from PIL import Image

from attribkit.app import drawing, pictures, saving
from attribkit.app.jobs import Step
from attribkit.app.session import Session
from attribkit.app.subject import Found, Subject
from attribkit.app.view import UPLOADED, Display
from attribkit.builtin.occlusion import windows
from attribkit.report.figures import robust_limit
from attribkit.report.page import percent
from attribkit.report.sections import array, method_title, strongest_place

SHOWN = 33
"""How many feature maps are shown unless all are asked for."""


def answer(session: Session) -> str:
    """Return the picture beside what the model says of it."""
    subject = session.subject
    if subject is None:
        return ""
    found, target = subject.answer, session.target
    rows = [(i, name, percent(p), max(0.5, 100 * p)) for i, name, p in (found.top if found else ())]
    other = None
    if found is not None and target is not None and target not in [row[0] for row in rows]:
        chance = float(found.probabilities[target])
        other = (target, subject.label(target), percent(chance), max(0.5, 100 * chance))
    return _render(
        "answer",
        picture=uri(subject.view, "WEBP"),
        size=subject.view.size,
        name=subject.picture.name,
        rows=[*rows, *([other] if other else [])],
        target=target,
        untrained=subject.shown.untrained,
    )


def facts(session: Session) -> str:
    """Return what is known of the model."""
    return _render("facts", model=session.shown.loaded)


def samples(session: Session) -> str:
    """Return the sample pictures, as buttons."""
    return _render("samples", samples=_samples(), chosen=session.view.picture)


def maps(session: Session, working: str | None = None, step: Step | None = None) -> str:
    """Return the methods' maps, side by side.

    Parameters
    ----------
    session
        What is looked at.
    working
        The method that is computing now.
    step
        How far it has come.
    """
    import attribkit

    subject, target = session.subject, session.target
    if subject is None:
        return ""
    words = "" if target is None else subject.label(target).partition(",")[0]
    known, cards, errors = attribkit.methods(), [], session.failures(target)
    for name in session.view.methods if target is not None else ():
        options = session.view.occlusion_options if name == "occlusion" else {}
        found = subject.known(name, target, options)
        card = {"name": name, "title": method_title(name), "summary": known[name].summary, "state": "waiting"}
        if name in errors:
            card |= {"state": "failed", "error": errors[name]}
        elif found is not None:
            card |= {"state": "done", **_drawn(subject, session, found, words)}
        elif name == working:
            card["state"] = "working"
        cards.append(card)
    return _render("maps", step=step, cards=cards, words=words, target=target, sign=session.view.display.sign)


def feature_maps(session: Session, everything: bool = False) -> str:
    """Return the layer's feature maps as buttons, the strongest first."""
    found = session.feature_maps()
    order = list(found.order)
    chosen = session.channel
    everything = everything or len(order) <= SHOWN + 11
    shown = order if everything else order[:SHOWN]
    if chosen not in shown:
        shown = [*shown, chosen]
    signed = bool((found.maps < 0).any())  # one palette a layer
    thumbs = [(c, uri(drawing.thumbnail(found.maps[c], signed)), f"{float(found.maps[c].max()):.3g}") for c in shown]
    return _render(
        "feature_maps",
        layer=found.layer,
        thumbs=thumbs,
        chosen=chosen,
        total=len(order),
        rows=found.maps.shape[1],
        columns=found.maps.shape[2],
    )


def unit(session: Session) -> str:
    """Return the feature map's projection, its receptive field and, where they were mined, its top patches."""
    subject = session.subject
    if subject is None:
        return ""
    found, patches, view = session.unit(), session.patches(), session.view
    values, box = found.found.values, found.box
    width, height = subject.view.size
    seen = box is not None and box.bottom > box.top
    whole = seen and box == (0, 0, height, width)
    colours = drawing.reconstruction(values, view.display.percentile)
    crop = colours.crop((box.left, box.top, box.right, box.bottom)) if seen and box is not None else colours
    heat = drawing.strength(values, view.display.sign)
    low, high = drawing.ends(view.display.sign, robust_limit(heat, view.display.percentile))
    return _render(
        "unit",
        layer=session.layer,
        channel=session.channel,
        projector=method_title(view.projector),
        activation=f"{found.found.score:.4g}",
        position=_position(found.position),
        seconds=found.found.seconds,
        silent=not values.any(),
        size=(width, height),
        box=box if seen else None,
        whole=whole,
        unknown=found.unknown,
        overlay=uri(drawing.draw(subject.view, values, view.display)),
        crop=uri(crop),
        crop_size=crop.size,
        where=strongest_place(values.sum(axis=0)),
        low=low,
        high=high,
        scale=uri(drawing.scale(view.display.sign)),
        patches=[(uri(p.projection), uri(p.picture), f"{p.value:.3g}", p.image) for p in patches or ()],
        mined=session.mined,
        fits=patches is not None,
    )


def occlusion(session: Session, found: Found | None) -> str:
    """Return the occlusion's map, in which each window can be pointed at."""
    subject, target = session.subject, session.target
    if subject is None or target is None:
        return _render(
            "occlusion", found=None, sentence="The model gives no class scores: there is nothing to occlude."
        )
    if found is None:
        return _render(
            "occlusion",
            found=None,
            sentence="Nothing computed yet: Start slides a grey square over the picture and asks the model each time.",
        )
    scores, labels = (array(found.result.extras[name])[0] for name in ("score_map", "label_map"))
    names = {int(i): subject.label(int(i)).partition(",")[0] for i in set(labels.flatten().tolist())}
    width, height = subject.view.size
    (tops, bottoms), (lefts, rights) = windows(height, width, **session.view.occlusion_options)
    data = {
        "clean": found.score,
        "scores": [[float(f"{score:.5g}") for score in row] for row in scores.tolist()],
        "labels": labels.tolist(),
        "names": names,
        "tops": tops,
        "bottoms": bottoms,
        "lefts": lefts,
        "rights": rights,
    }
    row, column = divmod(int(scores.argmin()), scores.shape[1])
    words = subject.label(target).partition(",")[0]
    return _render(
        "occlusion",
        found=found,
        data=json.dumps(data),
        size=subject.view.size,
        words=words,
        count=scores.size,
        least=f"{scores.min():.4g}",
        clean=f"{found.score:.4g}",
        at=(row, column),
        changed=int((labels != target).sum()),
        **_drawn(subject, session, found, words),
    )


def progress(step: Step) -> str:
    """Return how far the occlusion has come."""
    return _render("progress", step=step)


def notice(errors: Sequence[str] = (), notes: Sequence[str] = ()) -> str:
    """Return messages: errors, and what a reader should know."""
    return _render("notice", errors=errors, notes=notes)


def link(session: Session) -> str:
    """Return the link that restores the view."""
    return _render("link", query=session.query(), uploaded=session.view.picture == UPLOADED)


def address(session: Session) -> str:
    """Return what makes the link the page's own address."""
    return _render("address", query=session.query())


def code(text: str) -> str:
    """Return Python code with a button that copies it."""
    return _render("code", text=text)


def parcel(name: str, data: bytes, kind: str, number: int) -> str:
    """Return a file for the page's script to save; ``number`` tells one click from the next."""
    content = base64.b64encode(data).decode("ascii")
    return _render("parcel", name=name, content=content, kind=kind, number=number)


def saveable(session: Session) -> list[tuple[str, str]]:
    """Return what can be taken away, (name, key) each."""
    return [(item.name, item.key) for item in saving.items(session)]


def header() -> str:
    """Return the page's head."""
    return _render("header")


def uri(image: Image.Image, kind: str = "PNG") -> str:
    """Return an image as the address of its own content."""
    file = io.BytesIO()
    image.save(file, kind, **({"quality": 88} if kind == "WEBP" else {}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


def asset(name: str) -> str:
    """Return the text of one of the app's files."""
    return (resources.files("attribkit.app") / "templates" / name).read_text(encoding="utf-8")


def _position(position: int | tuple[int, int]) -> str:
    return f"token {position}" if isinstance(position, int) else f"row {position[0]}, column {position[1]}"


def _drawn(subject: Subject, session: Session, found: Found, words: str) -> dict[str, Any]:
    display = session.view.display
    drawn: dict[str, Any] = subject.kept.get_or(
        ("drawn", found, display), lambda: _draw(subject, found, words, display)
    )
    return drawn


def _draw(subject: Subject, found: Found, words: str, display: Display) -> dict[str, Any]:
    values = found.values
    heat = drawing.strength(values, display.sign)
    low, high = drawing.ends(display.sign, robust_limit(heat, display.percentile))
    where = strongest_place(heat, display.sign == "signed")
    return {
        "image": uri(drawing.draw(subject.view, values, display)),
        "small": max(subject.view.size) < 160,
        "alt": f"{method_title(found.result.method)} for {words}, {display.sign}: {where}",
        "low": low,
        "high": high,
        "scale": uri(drawing.scale(display.sign)),
        "empty": not heat.any(),
        "score": f"{found.score:.4g}",
        "seconds": found.seconds,
        "coverage": found.result.coverage.sentence if found.result.coverage.applies else "",
    }


@lru_cache(maxsize=1)
def _samples() -> list[tuple[str, str, str]]:
    found = []
    for picture in pictures.samples().values():
        image = picture.open().convert("RGB")
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        square = image.crop((left, top, left + side, top + side)).resize((96, 96), Image.Resampling.LANCZOS)
        found.append((picture.key, picture.name, uri(square, "WEBP")))
    return found


def _render(part: str, **values: Any) -> str:
    return _environment().get_template(f"{part}.html.j2").render(**values)


@lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(asset),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["seconds"] = lambda value: f"{value:.2f} s" if value < 10 else f"{value:.0f} s"
    return environment
