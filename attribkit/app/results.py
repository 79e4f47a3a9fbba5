"""What the page's controls do with results: occluding, which is watched while it goes on, and taking away."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

from attribkit.app import pages, saving
from attribkit.app.changes import Changes, Field, link
from attribkit.app.jobs import Job, Step, Stopped
from attribkit.app.session import Session
from attribkit.app.subject import Found
from attribkit.errors import InputError

_numbers = itertools.count(1)


def occlusion_asked(session: Session, window: float | None, stride: float | None) -> Changes:
    """Take over how the picture is to be occluded, which `occlude` does next."""
    session.change(window=int(window) if window else None, stride=int(stride) if stride else None)
    if session.target is None:
        raise InputError("the model gives no class scores: there is nothing to occlude")
    session.begin("occlusion")
    stop(session)
    session.stopped = False
    yield {"notice": "", **link(session), **occlusion_shown(session)}


def occlude(session: Session) -> Changes:
    """Occlude the picture if that was not done before, and show how far it has come.

    The page has its buttons, Start or Stop, by whether it shows that.
    """
    subject, target = session.subject, session.target
    turns = session.begin("occlusion")
    stop(session)
    found = occluded(session)
    if subject is None or target is None or session.stopped or found is not None:
        yield {"occlusion": pages.occlusion(session, found)}
        return
    job: Job[Found] = Job(partial(subject.attribution, "occlusion", target, session.view.occlusion_options))
    session.job = job
    for step in job.steps():
        if not session.current(turns, "occlusion"):
            return
        yield {"occlusion": pages.progress(step)}
    try:
        yield {"occlusion": pages.occlusion(session, job.result())}
    except Stopped:
        stopped = pages.notice(notes=["The occlusion was stopped."])
        yield {"occlusion": pages.occlusion(session, occluded(session)), "notice": stopped}
    except Exception:
        yield {"occlusion": pages.occlusion(session, None)}
        raise


def stop(session: Session) -> None:
    """Stop the occlusion under way, if there is one."""
    if session.job is not None:
        session.job.stop()


def stopped(session: Session) -> None:
    """Stop the occlusion under way until it is asked for again."""
    session.stopped = True
    stop(session)


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


def occlusion_shown(session: Session) -> dict[str, Any]:
    """Return the occlusion, or that it is going to be computed."""
    found = occluded(session)
    wanted = found is None and session.target is not None
    return {"occlusion": pages.progress(Step(0, 0, 0.0)) if wanted else pages.occlusion(session, found)}


def take_away(session: Session) -> dict[str, Any]:
    """Return the changes of the part of the page that takes away."""
    found = pages.saveable(session)
    key = session.item if session.item in [key for _, key in found] else found[0][1]
    return {
        "item": Field(key, choices=found),
        "code": pages.code(saving.code(session, _item(session, key))),
        **link(session),
    }


def occluded(session: Session) -> Found | None:
    """Return the occlusion that is looked at, if it was computed."""
    if session.subject is None or session.target is None:
        return None
    return session.subject.known("occlusion", session.target, session.view.occlusion_options)


def _item(session: Session, key: str | None) -> saving.Item:
    found = {item.key: item for item in saving.items(session)}
    if key not in found:
        raise InputError("nothing is chosen to be taken away")
    session.item = key
    return found[key]
