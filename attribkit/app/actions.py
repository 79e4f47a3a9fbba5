"""What the page's controls do. Each action yields changes of the page, by the names of its parts.

A value is the part's new content, or a `Field` for a control. Nothing here knows gradio.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from attribkit.app import pages, saving
from attribkit.app.jobs import Job, Stopped
from attribkit.app.session import Session, Superseded
from attribkit.app.subject import Found
from attribkit.app.view import Display
from attribkit.cli._group import describe
from attribkit.errors import InputError

Changes = Iterator[dict[str, Any]]

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Field:
    """A control's new state; what is None stays as it is, but for ``value`` with ``clear``."""

    value: Any = None
    choices: Sequence[Any] | None = None
    visible: bool | None = None
    clear: bool = False


def opened(session: Session, query: Mapping[str, str]) -> Changes:
    """Show what an address asks for."""
    complaints = session.open(query)
    view, display = session.view, session.view.display
    yield {
        **_subject(session, notes=complaints),
        "samples": pages.samples(session),
        "methods": Field(list(view.methods)),
        "projector": Field(view.projector),
        "window": Field(view.window, clear=True),
        "stride": Field(view.stride, clear=True),
        "opacity": Field(display.opacity),
        "sign": Field(display.sign),
        "percentile": Field(display.percentile),
        "tab": Field(view.tab),
    }
    yield from _tab(session)


def model_chosen(session: Session, model: str | None, weights: str | None) -> Changes:
    """Show another model."""
    before = (session.view.model, session.view.weights)
    if (model, weights or "") == before:
        return
    yield {"notice": pages.notice(notes=[f"Loading {model} …"])}
    try:
        session.choose_model(model or "", weights or "")
    except Superseded:
        raise
    except Exception:
        yield {"model": Field(before[0]), "weights": Field(before[1])}
        raise
    yield {**_subject(session), "samples": pages.samples(session)}
    yield from _tab(session)


def picked(session: Session, kind: str, value: str, order: float = 0.0) -> Changes:
    """Do what a button in the page stands for; ``order`` is when it was clicked."""
    if not session.newest(kind, order):
        return
    if kind == "class":
        yield from class_chosen(session, int(value))
    elif kind == "channel":
        yield from channel_chosen(session, int(value))
    elif kind == "all":
        yield {"feature_maps": pages.feature_maps(session, everything=True)}
    elif kind == "sample":
        session.choose_sample(value)
        yield {**_subject(session), "samples": pages.samples(session)}
        yield from _tab(session)


def uploaded(session: Session, path: str | None) -> Changes:
    """Show somebody's own picture."""
    if path is None:
        return
    try:
        session.upload(path)
    finally:
        yield {"upload": Field(clear=True)}
    yield {**_subject(session), "samples": pages.samples(session)}
    yield from _tab(session)


def class_chosen(session: Session, index: int | None) -> Changes:
    """Explain another class."""
    session.choose_class(index)
    yield {
        "notice": "",
        "answer": pages.answer(session),
        "target": Field(session.target),
        **_link(session),
    }
    yield from _tab(session)


def methods_chosen(session: Session, names: Sequence[str]) -> Changes:
    """Show other methods' maps."""
    session.choose_methods(names)
    yield {"notice": "", **_link(session)}
    yield from _tab(session)


def tab_chosen(session: Session, tab: str) -> Changes:
    """Turn to another part of the page."""
    if session.view.tab == tab:
        return
    session.change(tab=tab)
    yield {**_link(session)}
    yield from _tab(session)


def layer_chosen(session: Session, layer: str | None) -> Changes:
    """Look at another layer."""
    if not layer or layer.strip() == session.layer:
        return
    before = session.layer
    try:
        session.choose_layer(layer.strip())
    except Exception:
        yield {"layer": Field(before)}
        raise
    yield {"notice": "", **_link(session)}
    yield from _units(session)


def channel_chosen(session: Session, channel: float | None) -> Changes:
    """Look at another feature map."""
    if channel is None or int(channel) == session.channel:
        return
    try:
        session.choose_channel(int(channel))
    except InputError:
        yield {"channel": Field(session.channel)}
        raise
    yield {"notice": "", **_link(session)}
    yield from _units(session)


def projector_chosen(session: Session, name: str) -> Changes:
    """Project by another method."""
    before = session.view.projector
    session.change(projector=name)
    try:
        yield from _units(session)
    except Exception:
        session.change(projector=before)
        yield {"projector": Field(before)}
        raise
    yield {"notice": "", **_link(session)}


def displayed(session: Session, opacity: float, sign: str, percentile: float) -> Changes:
    """Draw everything in another way; nothing is computed anew."""
    display = Display(opacity=opacity, sign=sign, percentile=percentile)
    if display == session.view.display:
        return
    session.change(display=display)
    tab = session.view.tab
    redrawn = _link(session)
    if tab == "maps":
        redrawn["maps"] = pages.maps(session)
    elif tab == "units":
        redrawn["unit"] = pages.unit(session)
    elif tab == "occlusion":
        redrawn["occlusion"] = pages.occlusion(session, _occluded(session))
    else:
        redrawn |= _save(session)
    yield redrawn


def occlude(session: Session, window: float | None, stride: float | None) -> Changes:
    """Occlude the picture, and say how far it has come."""
    session.change(window=int(window) if window else None, stride=int(stride) if stride else None)
    subject, target = session.subject, session.target
    if subject is None or target is None:
        raise InputError("the model gives no class scores: there is nothing to occlude")
    turns = session.begin("occlusion")
    stop(session)
    options = session.view.occlusion_options
    job: Job[Found] = Job(partial(subject.attribution, "occlusion", target, options))
    session.job = job
    running = {"run": Field(visible=False), "stop": Field(visible=True)}
    yield {"notice": "", **_link(session), "occlusion": pages.progress(job.step()), **running}
    for step in job.steps():
        if not session.current(turns, "occlusion"):
            return
        yield {"occlusion": pages.progress(step)}
    ended = {"run": Field(visible=True), "stop": Field(visible=False)}
    try:
        yield {"occlusion": pages.occlusion(session, job.result()), **ended}
    except Stopped:
        yield {"occlusion": pages.occlusion(session, _occluded(session)), **ended}
        yield {"notice": pages.notice(notes=["The occlusion was stopped."])}
    except Exception:
        yield {"occlusion": pages.occlusion(session, None), **ended}
        raise


def occlusion_wanted(session: Session) -> Changes:
    """Occlude the picture if that is what is looked at, and it was not done before."""
    view = session.view
    if view.tab == "occlusion" and session.target is not None and _occluded(session) is None:
        yield from occlude(session, view.window, view.stride)


def stop(session: Session) -> None:
    """Stop the occlusion under way, if there is one."""
    if session.job is not None:
        session.job.stop()


def item_chosen(session: Session, key: str | None) -> Changes:
    """Show the code of another result."""
    yield {"code": pages.code(saving.code(session, _item(session, key)))}


def saved(session: Session, key: str | None, what: str) -> Changes:
    """Send a result to the page as a file: its numbers, its figure or its code."""
    item = _item(session, key)
    if what == "map":
        file = (f"{item.stem}.safetensors", saving.numbers(item), "application/octet-stream")
    elif what == "figure":
        file = (f"{item.stem}.png", saving.picture(session, item), "image/png")
    else:
        file = (f"{item.stem}.py", saving.code(session, item).encode(), "text/x-python")
    yield {"notice": "", "parcel": pages.parcel(*file, number=next(_numbers))}


# ----------------------------------------------------------------------------------------------------------------------


def _subject(session: Session, notes: Sequence[str] = ()) -> dict[str, Any]:
    """Return what changes when the model or the picture does."""
    session.begin("maps", "units", "occlusion")
    stop(session)
    subject, view = session.shown, session.view
    answer = session.subject.answer if session.subject is not None else None
    count = 0 if answer is None else len(answer.probabilities)
    labels = [(f"{session.subject.label(i)} ({i})", i) for i in range(count)] if session.subject is not None else []
    layers = list(dict.fromkeys([*subject.layers, session.layer]))
    return {
        "notice": pages.notice(notes=notes),
        "answer": pages.answer(session),
        "facts": pages.facts(session),
        "model": Field(view.model, choices=list(dict.fromkeys([*session.shelf.choices, view.model]))),
        "weights": Field(view.weights),
        "target": Field(session.target, choices=labels, clear=True),
        "layer": Field(session.layer, choices=layers),
        **_link(session),
        "run": Field(visible=True),
        "stop": Field(visible=False),
    }


def _link(session: Session) -> dict[str, Any]:
    return {"link": pages.link(session), "address": pages.address(session)}


def _tab(session: Session) -> Changes:
    """Compute and show what the part of the page that is open needs."""
    return {"maps": _maps, "units": _units, "occlusion": _occlusion, "save": _saving}[session.view.tab](session)


def _maps(session: Session) -> Changes:
    turns = session.begin("maps")
    subject, target = session.subject, session.target
    for name in session.view.methods if subject is not None and target is not None else ():
        options = session.view.occlusion_options if name == "occlusion" else {}
        failures = session.failures(target)
        if subject is None or subject.known(name, target, options) is not None or name in failures:
            continue
        job: Job[Found] = Job(partial(subject.attribution, name, target, options))
        yield {"maps": pages.maps(session, working=name)}
        for step in job.steps(every=0.25):
            if not session.current(turns, "maps"):
                return  # which stops the job
            if step.total > 1:
                yield {"maps": pages.maps(session, name, step)}
        try:
            job.result()
        except Exception as error:
            failures[name] = describe(error)
    if session.current(turns, "maps"):
        yield {"maps": pages.maps(session)}


def _units(session: Session) -> Changes:
    turns = session.begin("units")
    yield {
        "feature_maps": pages.feature_maps(session),
        "layer": Field(session.layer),
        "channel": Field(session.channel),
    }
    drawn = pages.unit(session)
    if session.current(turns, "units"):
        yield {"unit": drawn}


def _occlusion(session: Session) -> Changes:
    yield {"occlusion": pages.occlusion(session, _occluded(session))}


def _saving(session: Session) -> Changes:
    yield _save(session)


def _save(session: Session) -> dict[str, Any]:
    found = pages.saveable(session)
    key = session.item if session.item in [key for _, key in found] else found[0][1]
    return {
        "item": Field(key, choices=found),
        "code": pages.code(saving.code(session, _item(session, key))),
        **_link(session),
    }


def _occluded(session: Session) -> Found | None:
    if session.subject is None or session.target is None:
        return None
    return session.subject.known("occlusion", session.target, session.view.occlusion_options)


def _item(session: Session, key: str | None) -> saving.Item:
    found = {item.key: item for item in saving.items(session)}
    if key not in found:
        raise InputError("nothing is chosen to be taken away")
    session.item = key
    return found[key]
