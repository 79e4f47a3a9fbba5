"""The page: gradio's controls around the parts that `attribkit.app.pages` writes. What they do is in `actions`."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from attribkit.app import actions, pages, results
from attribkit.app.changes import Changes, Field
from attribkit.app.session import Session, Superseded, projectors
from attribkit.app.shelf import Shelf
from attribkit.app.top import Mined
from attribkit.app.view import SIGNS, WINDOW, Display
from attribkit.cli._group import describe
from attribkit.report.sections import method_title

Action = Callable[..., Changes]

FORGOTTEN = "The server has forgotten this page, as after a restart: reload it, and its address restores the view."

TOGETHER = 4
"""How many users' computations run at the same time; others wait for their turn."""


class Page:
    """The page and its events.

    Parameters
    ----------
    shelf
        The models.
    mined
        What was mined of a data set, or None.
    debug
        Whether tracebacks of unexpected errors go to stderr.
    """

    def __init__(self, shelf: Shelf, mined: Mined | None = None, debug: bool = False) -> None:
        self.shelf, self.mined, self.debug = shelf, mined, debug
        self.parts: dict[str, Any] = {}
        with gr.Blocks(
            title="attribkit: look inside a network",
            analytics_enabled=False,
            delete_cache=(600, 600),  # uploads are read into memory at once
        ) as self.blocks:
            self.session = gr.State(None, time_to_live=6 * 3600)
            self._build()
            self._connect()

    # -- what there is -------------------------------------------------------------------------------------------------

    def _build(self) -> None:
        gr.HTML(pages.header(), js_on_load=pages.asset("header.js"), elem_id="header")
        self._html("notice", asset="notice.js")
        self._html("address", asset="address.js")
        with gr.Row(elem_id="shell"):
            with gr.Column(elem_id="main"):
                self._html("answer")
                with gr.Tabs(elem_id="tabs") as tabs:
                    self.parts["tab"] = tabs
                    with gr.Tab("Class maps", id="maps") as maps:
                        self._html("maps", js=None)
                    with gr.Tab("Features", id="units") as units:
                        self._units()
                    with gr.Tab("Occlusion", id="occlusion") as occlusion:
                        self._occlusion()
                    with gr.Tab("Save", id="save") as save:
                        self._save()
                self.tabs = {"maps": maps, "units": units, "occlusion": occlusion, "save": save}
                self._display()
            with gr.Column(elem_id="settings"):
                self._settings()

    def _settings(self) -> None:
        import attribkit

        gr.HTML("<h2>What to look at</h2>")
        add = self.parts.__setitem__
        add(
            "model",
            gr.Dropdown(
                self.shelf.choices,
                value=self.shelf.choices[0],
                label="Model",
                info="or write any name: timm/resnet18, torchvision/vgg16",
                allow_custom_value=True,
                elem_id="model",
            ),
        )
        names = self.shelf.checkpoints
        choices = [("the model's own", ""), *((name, name) for name in names)]
        add("weights", gr.Dropdown(choices, value="", label="Weights", visible=bool(names), elem_id="weights"))
        self._html("facts", js=None)
        self._html("samples")
        add(
            "upload",
            gr.File(label="Or drop your own picture here", file_types=["image"], height=118, elem_id="upload"),
        )
        add("target", gr.Dropdown([], label="Class to explain", elem_id="target"))
        methods = [(method_title(name), name) for name in attribkit.methods()]
        add("methods", gr.CheckboxGroup(methods, label="Methods", elem_id="methods"))

    def _units(self) -> None:
        with gr.Row(elem_id="unit-controls"):
            self.parts["layer"] = gr.Dropdown(
                [],
                label="Layer",
                allow_custom_value=True,
                elem_id="layer",
                min_width=150,
            )
            self.parts["channel"] = gr.Number(
                label="Feature map", precision=0, minimum=0, elem_id="channel", min_width=110
            )
            self.parts["projector"] = gr.Dropdown(
                [(method_title(name), name) for name in projectors()],
                value="deconvnet",
                label="Projected by",
                elem_id="projector",
                min_width=150,
            )
        with gr.Row(elem_id="features"):
            self._html("feature_maps")
            self._html("unit", js=None)

    def _occlusion(self) -> None:
        with gr.Row(elem_id="occlusion-controls"):
            for name, label, least in (("window", "Square, pixels", WINDOW[0]), ("stride", "Step, pixels", 1)):
                self.parts[name] = gr.Number(
                    label=label,
                    placeholder="by its size",
                    precision=0,
                    minimum=least,
                    maximum=WINDOW[1],
                    elem_id=name,
                    min_width=150,
                )
            self.parts["run"] = gr.Button("Start", variant="primary", elem_id="run", min_width=110)
            self.parts["stop"] = gr.Button("Stop", variant="stop", elem_id="stop", min_width=110)
        self._html("occlusion", asset="hover.js")

    def _save(self) -> None:
        self._html("link", js=pages.asset("link.js") + pages.asset("copy.js"))
        self.parts["item"] = gr.Dropdown(
            [],
            label="What to take away",
            info="as numbers (safetensors), as a figure (PNG), or as Python code",
            elem_id="item",
        )
        with gr.Row(elem_id="save-buttons"):
            self.buttons = {
                what: gr.Button(label, elem_id=f"save-{what}", min_width=110)
                for what, label in (("map", "Numbers"), ("figure", "Figure"), ("code", "Code"))
            }
        self._html("code", asset="copy.js")
        self._html("parcel", asset="parcel.js")

    def _display(self) -> None:
        with gr.Row(elem_id="display"):
            self.parts["sign"] = gr.Radio(list(SIGNS), value=Display().sign, label="Sign", elem_id="sign")
            self.parts["opacity"] = gr.Slider(0, 1, 0.85, step=0.05, label="Opacity", elem_id="opacity")
            self.parts["percentile"] = gr.Slider(80, 100, 99.5, step=0.5, label="Percentile", elem_id="percentile")

    def _html(self, name: str, asset: str = "pick.js", js: str | None = "") -> None:
        script = pages.asset(asset) if js == "" else js
        self.parts[name] = gr.HTML("", js_on_load=script, elem_id=name, padding=False)

    # -- what it does --------------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        part, compute = self.parts, self._streamed(actions.computed)

        def then_compute(event: Any) -> None:
            event.then(compute, self.session, [*part.values()], **_QUIET, **_COMPUTING)

        def on(listener: Any, action: Action, *inputs: str, then: bool = True, **more: Any) -> Any:
            given = [self.session, *(part[name] for name in inputs)]
            done = listener(self._at_once(action), given, [*part.values()], **{**_QUIET, **more})
            if then:
                then_compute(done)
            return done

        def opened(session: Session | None, request: gr.Request) -> dict[Any, Any]:
            return self._at_once(actions.opened)(session, dict(request.query_params))

        def picked(session: Session | None, event: gr.EventData) -> dict[Any, Any]:
            data: Any = event
            return self._at_once(actions.picked)(session, str(data.kind), str(data.value), float(data.order))

        begun = self.blocks.load(lambda: Session(self.shelf, self.mined), None, self.session, **_QUIET)
        then_compute(begun.then(opened, self.session, [*part.values()], **_QUIET))
        for name in ("answer", "samples", "feature_maps"):
            then_compute(part[name].pick(picked, self.session, [*part.values()], **_QUIET))
        for name in ("model", "weights"):
            said = on(part[name].input, actions.loading, "model", "weights", then=False)
            on(said.then, actions.model_chosen, "model", "weights")
        on(part["upload"].upload, actions.uploaded, "upload")
        on(part["target"].input, actions.class_chosen, "target")
        on(part["methods"].input, actions.methods_chosen, "methods")
        on(part["layer"].input, actions.layer_chosen, "layer")
        on(part["channel"].input, actions.channel_chosen, "channel")
        on(part["projector"].input, actions.projector_chosen, "projector")
        for name in ("opacity", "sign", "percentile"):
            on(part[name].input, actions.displayed, "opacity", "sign", "percentile", then=False, **_LAST)
        on(part["run"].click, results.occlusion_asked, "window", "stride")
        part["stop"].click(self._stop, self.session, None, queue=False, **_QUIET)
        on(part["item"].input, results.item_chosen, "item", then=False)
        for what, button in self.buttons.items():
            on(button.click, lambda session, key, what=what: results.saved(session, key, what), "item", then=False)
        for tab, element in self.tabs.items():
            on(element.select, lambda session, tab=tab: actions.tab_chosen(session, tab))

    # gradio sends of each change but the first what is new in it, and the page edits with that the change before, drawn
    # or not: what a control was to become is lost in between, while the text of an HTML part is not. So an action's
    # changes are sent as one, and what follows, change by change, is of HTML parts alone.

    def _at_once(self, action: Action) -> Callable[..., dict[Any, Any]]:
        """Return an action as gradio calls it: all of its changes are one."""

        def handle(session: Session | None, *values: Any) -> dict[Any, Any]:
            found: dict[str, Any] = {}
            for part in self._changes(action, session, *values):
                found |= part
            changes = {self.parts[name]: _update(name, value) for name, value in found.items()}
            return changes or {self.parts["parcel"]: gr.skip()}

        return handle

    def _streamed(self, action: Action) -> Callable[..., Iterator[dict[Any, Any]]]:
        """Return an action as gradio calls it: each of its changes is drawn by itself."""

        def handle(session: Session | None) -> Iterator[dict[Any, Any]]:
            for part in self._changes(action, session):
                yield {self.parts[name]: value for name, value in part.items()}
            # gradio sends the last of these again when it has ended: nothing, as a later action may have changed a part
            yield {self.parts["parcel"]: gr.skip()}

        return handle

    def _changes(self, action: Action, session: Session | None, *values: Any) -> Changes:
        """Yield what an action changes; an error becomes a message in the page."""
        if session is None:
            yield {"notice": pages.notice(errors=[FORGOTTEN])}
            return
        try:
            yield from action(session, *values)
        except Superseded:
            pass  # what was asked instead is shown
        except Exception as error:
            if self.debug:
                traceback.print_exception(error)
            yield {"notice": pages.notice(errors=[describe(error)])}

    @staticmethod
    def _stop(session: Session | None) -> None:
        if session is not None:
            results.stopped(session)


# by default a click is lost while what the one before asked is still computed
_QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "trigger_mode": "multiple"}
_LAST: dict[str, Any] = {"trigger_mode": "always_last"}
_COMPUTING: dict[str, Any] = {"concurrency_id": "computing", "concurrency_limit": TOGETHER}


def _update(name: str, value: Any) -> Any:
    if not isinstance(value, Field):
        return value
    if name == "tab":
        return gr.Tabs(selected=value.value)
    changes: dict[str, Any] = {}
    if value.value is not None or value.clear:
        changes["value"] = value.value
    if value.choices is not None:
        changes["choices"] = list(value.choices)
    return gr.update(**changes)
