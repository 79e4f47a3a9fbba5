"""What the page's controls do. Each action yields changes of the page, by the names of its parts.

A value is the part's new content, or a `Field` for a control. The page gets all changes of an action at once. What
takes longer is left to `computed`, which is done next: it changes no control, and the page gets each of its changes as
it is made. Nothing here knows gradio.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from attribkit.app import pages
from attribkit.app.changes import Changes, Field, link
from attribkit.app.jobs import Job
from attribkit.app.results import occlude, occluded, occlusion_shown, stop, take_away
from attribkit.app.session import Session, Superseded
from attribkit.app.subject import Found
from attribkit.app.view import Display
from attribkit.cli._group import describe
from attribkit.errors import InputError


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
    yield _tab(session)


def loading(session: Session, model: str | None, weights: str | None) -> Changes:
    """Say that another model is loaded, as `model_chosen` does next."""
    if (model, weights or "") != (session.view.model, session.view.weights):
        yield {"notice": pages.notice(notes=[f"Loading {model} …"])}


def model_chosen(session: Session, model: str | None, weights: str | None) -> Changes:
    """Show another model."""
    before = (session.view.model, session.view.weights)
    if (model, weights or "") == before:
        return
    try:
        session.choose_model(model or "", weights or "")
    except Superseded:
        raise
    except Exception:
        yield {"model": Field(before[0]), "weights": Field(before[1])}
        raise
    yield {**_subject(session), "samples": pages.samples(session)}
    yield _tab(session)


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
        yield _tab(session)


def uploaded(session: Session, path: str | None) -> Changes:
    """Show somebody's own picture."""
    if path is None:
        return
    try:
        session.upload(path)
    except Exception:
        yield {"upload": Field(clear=True)}
        raise
    yield {"upload": Field(clear=True), **_subject(session), "samples": pages.samples(session)}
    yield _tab(session)


def class_chosen(session: Session, index: int | None) -> Changes:
    """Explain another class."""
    session.choose_class(index)
    yield {
        "notice": "",
        "answer": pages.answer(session),
        "target": Field(session.target),
        **link(session),
    }
    yield _tab(session)


def methods_chosen(session: Session, names: Sequence[str]) -> Changes:
    """Show other methods' maps."""
    session.choose_methods(names)
    yield {"notice": "", **link(session)}
    yield _tab(session)


def tab_chosen(session: Session, tab: str) -> Changes:
    """Turn to another part of the page."""
    if session.view.tab == tab:
        return
    session.change(tab=tab)
    yield {**link(session)}
    yield _tab(session)


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
    yield {"notice": "", **link(session)}
    yield _tab(session)


def channel_chosen(session: Session, channel: float | None) -> Changes:
    """Look at another feature map."""
    if channel is None or int(channel) == session.channel:
        return
    try:
        session.choose_channel(int(channel))
    except InputError:
        yield {"channel": Field(session.channel)}
        raise
    yield {"notice": "", **link(session)}
    yield _tab(session)


def projector_chosen(session: Session, name: str) -> Changes:
    """Project by another method."""
    before = session.view.projector
    session.change(projector=name)
    try:
        session.unit()  # says what is wrong with it
    except Exception:
        session.change(projector=before)
        yield {"projector": Field(before)}
        raise
    yield {"notice": "", **link(session)}
    yield _tab(session)


def displayed(session: Session, opacity: float, sign: str, percentile: float) -> Changes:
    """Draw everything in another way; nothing is computed anew."""
    display = Display(opacity=opacity, sign=sign, percentile=percentile)
    if display == session.view.display:
        return
    session.change(display=display)
    tab = session.view.tab
    redrawn = link(session)
    if tab == "maps":
        redrawn["maps"] = pages.maps(session)
    elif tab == "units":
        session.begin("units")  # what is being drawn in the way before is not shown after this
        redrawn["unit"] = pages.unit(session)
    elif tab == "occlusion":
        found = occluded(session)
        if found is not None:
            redrawn["occlusion"] = pages.occlusion(session, found)
    else:
        redrawn |= take_away(session)
    yield redrawn


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
        **link(session),
    }


def _tab(session: Session) -> dict[str, Any]:
    """Return what the part of the page that is open shows at once; the rest is left to `computed`."""
    tab = session.view.tab
    session.begin(tab)  # what was asked before is no longer shown
    session.stopped = False
    if tab == "units":
        return {
            "feature_maps": pages.feature_maps(session),
            "layer": Field(session.layer),
            "channel": Field(session.channel),
        }
    if tab == "occlusion":
        return occlusion_shown(session)
    return take_away(session) if tab == "save" else {}


def computed(session: Session) -> Changes:
    """Compute what the part of the page that is open needs, and show how far it has come."""
    compute = {"maps": _maps, "units": _unit, "occlusion": occlude}.get(session.view.tab)
    if compute is not None and session.subject is not None:
        yield from compute(session)


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


def _unit(session: Session) -> Changes:
    turns = session.begin("units")
    drawn = pages.unit(session)
    if session.current(turns, "units"):
        yield {"unit": drawn}
