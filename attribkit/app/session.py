"""What one open page looks at: its own view, picture and results. Users share nothing but the loaded models."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from attribkit.app import links, pictures
from attribkit.app.jobs import Job
from attribkit.app.pictures import Picture
from attribkit.app.shelf import Shelf, Shown
from attribkit.app.subject import FeatureMaps, Found, Subject, UnitFound
from attribkit.app.top import Mined, Patch
from attribkit.app.view import UPLOADED, View
from attribkit.errors import AttribkitError, InputError, did_you_mean


class Superseded(Exception):
    """Something else was asked while this was being loaded."""


class Session:
    """One open page.

    Parameters
    ----------
    shelf
        The models.
    mined
        What was mined of a data set, or None.

    Attributes
    ----------
    view
        What is looked at.
    subject
        The view's model with its picture; None before the first is loaded.
    job
        The occlusion under way, or None.
    item
        What is chosen to be taken away.
    stopped
        Whether the occlusion was stopped by hand, and not asked for again.
    """

    def __init__(self, shelf: Shelf, mined: Mined | None = None) -> None:
        self.shelf, self.mined = shelf, mined
        self.view = default_view(shelf)
        self.subject: Subject | None = None
        self.job: Job[Found] | None = None
        self.item: str | None = None
        self.stopped = False
        self._upload: Picture | None = None
        self._lock = threading.RLock()
        self._turns: dict[str, int] = {}
        self._clicks: dict[str, float] = {}
        self._failures: dict[int | None, dict[str, str]] = {}

    # -- taking turns: a computation whose question is no longer asked shows nothing -----------------------------------

    def begin(self, *areas: str) -> dict[str, int]:
        """Note that something else is asked in these areas of the page; return what `current` takes."""
        with self._lock:
            for area in areas:
                self._turns[area] = self._turns.get(area, 0) + 1
            return {area: self._turns[area] for area in areas}

    def current(self, turns: Mapping[str, int], area: str) -> bool:
        """Tell whether nothing else was asked in an area since `begin`."""
        with self._lock:
            return self._turns.get(area) == turns.get(area)

    def newest(self, what: str, order: float) -> bool:
        """Tell whether a click is later than all of its kind before: two may overtake each other on their way.

        Parameters
        ----------
        what
            The kind of click.
        order
            When it was made, by the page's clock.
        """
        with self._lock:
            if order < self._clicks.get(what, 0.0):
                return False
            self._clicks[what] = order
            return True

    def change(self, **changes: Any) -> None:
        """Change fields of the view; those of the display go with ``display=``.

        Raises
        ------
        InputError
            A field cannot have that value: the view stays as it was.
        """
        with self._lock:
            self.view = replace(self.view, **changes)

    # -- what the page's controls ask ----------------------------------------------------------------------------------

    def open(self, query: Mapping[str, str]) -> list[str]:
        """Show what a link says, as far as that is possible; return what was not, a line each."""
        default = default_view(self.shelf)
        wanted, complaints = links.from_query(query, default)
        if wanted.picture == UPLOADED:
            complaints.append(
                "the link was made for an uploaded picture, which no link can hold: a sample is shown; "
                "drop the picture again to see it with the rest of the view"
            )
        elif wanted.picture not in pictures.samples():
            complaints.append(f"the link's picture {wanted.picture!r} is no sample's")
            wanted = replace(wanted, picture=default.picture)
        wanted, wrong = _known_methods(wanted, default)
        complaints += wrong
        try:
            self._load(wanted, keep=True, whole=True)
        except Exception as error:
            if (wanted.model, wanted.weights) == (default.model, default.weights):
                raise
            complaints.append(str(error))
            self._load(replace(default, picture=wanted.picture, display=wanted.display), keep=False, whole=True)
        return complaints + self._fitted()

    def _fitted(self) -> list[str]:
        """Leave out of the view what its model does not have; return what that was, a line each."""
        subject, complaints = self._loaded(), []
        if self.view.target is not None:
            try:
                self._check_class(self.view.target)
            except InputError as error:
                complaints.append(str(error))
                self.change(target=None)
        if self.view.layer is not None and self.view.layer not in subject.shown.layers:
            try:
                subject.feature_maps(self.view.layer)
            except AttribkitError as error:
                complaints.append(str(error))
                self.change(layer=None, channel=None)
        if self.view.channel is not None:
            try:
                self._check_channel(self.view.channel)
            except AttribkitError as error:
                complaints.append(str(error))
                self.change(channel=None)
        return complaints

    def choose_model(self, model: str, weights: str = "") -> None:
        """Show another model; a sample that it cannot make sense of gives way to one that it can."""
        if self.subject is not None and (model, weights) == (self.view.model, self.view.weights):
            return
        self._load(replace(self.view, model=model, weights=weights), keep=False)

    def choose_sample(self, key: str) -> None:
        """Show a sample picture."""
        pictures.sample(key)
        self._load(replace(self.view, picture=key, target=None, channel=None), keep=True)

    def upload(self, path: str) -> None:
        """Show somebody's own picture."""
        picture = pictures.uploaded(path)
        waited = self.view.picture == UPLOADED and self._upload is None  # a link was opened that is for this picture
        self._upload = picture
        kept = self.view if waited else replace(self.view, target=None, channel=None)
        self._load(replace(kept, picture=UPLOADED), keep=True)

    def choose_class(self, index: int | None) -> None:
        """Explain another class; the most probable one is explained by default."""
        top = self._check_class(index)
        self.change(target=None if index == top else index)

    def choose_methods(self, names: Sequence[str]) -> None:
        """Show other methods' maps."""
        self.change(methods=tuple(names))

    def choose_layer(self, layer: str) -> None:
        """Look at another layer."""
        self._loaded().feature_maps(layer)  # says what is wrong with it
        self.change(layer=layer, channel=None)

    def choose_channel(self, channel: int) -> None:
        """Look at another feature map."""
        self._check_channel(channel)
        self.change(channel=channel)

    # -- what it looks at ----------------------------------------------------------------------------------------------

    @property
    def shown(self) -> Shown:
        """The model."""
        return self._loaded().shown

    @property
    def target(self) -> int | None:
        """The class that is explained; None where the model gives no class scores."""
        if self.view.target is not None:
            return self.view.target
        answer = self._loaded().answer
        return None if answer is None else answer.top[0][0]

    @property
    def layer(self) -> str:
        """The layer that is looked at."""
        layers = self.shown.layers
        return self.view.layer or layers[len(layers) // 2]  # the middle: small fields, and features worth the name

    @property
    def channel(self) -> int:
        """The feature map that is looked at."""
        return self.view.channel if self.view.channel is not None else self.feature_maps().order[0]

    def feature_maps(self) -> FeatureMaps:
        """Return the layer's feature maps."""
        return self._loaded().feature_maps(self.layer)

    def unit(self) -> UnitFound:
        """Return the feature map's projection."""
        return self._loaded().unit(self.layer, self.channel, self.view.projector)

    def patches(self) -> list[Patch] | None:
        """Return the patches that excite the feature map most; None where no fitting folder was given."""
        if self.mined is None or not self.mined.fits(self.shown):
            return None
        return self.mined.patches(self.layer, self.channel)

    def failures(self, target: int | None) -> dict[str, str]:
        """Return why methods failed to explain a class, by name; more may be noted there."""
        return self._failures.setdefault(target, {})

    def query(self) -> str:
        """Return the view as the query of an address."""
        return links.to_query(self.view, default_view(self.shelf))

    # ------------------------------------------------------------------------------------------------------------------

    def _loaded(self) -> Subject:
        if self.subject is None:
            raise InputError("no model is loaded: choose one")
        return self.subject

    def _check_class(self, index: int | None) -> int:
        """Return the most probable class; `InputError` where the model has no class ``index``."""
        answer = self._loaded().answer
        if answer is None:
            raise InputError("the model gives no class scores: there is no class to explain")
        count = len(answer.probabilities)
        if index is not None and not 0 <= index < count:
            raise InputError(f"class {index} is out of range: {self.view.model} has {count} classes, 0 to {count - 1}")
        return answer.top[0][0]

    def _check_channel(self, channel: int) -> None:
        count = len(self.feature_maps().maps)
        if not 0 <= channel < count:
            raise InputError(f"feature map {channel} is out of range: {self.layer} has {count}, 0 to {count - 1}")

    def _load(self, wanted: View, keep: bool, whole: bool = False) -> None:
        """Load the model and the picture of a view, and then show it; a failure leaves everything as it was.

        Parameters
        ----------
        wanted
            The view.
        keep
            Whether what belongs to a model (class, layer, channel) is kept.
        whole
            Whether the rest of the view is taken over too; otherwise what was changed meanwhile stays.

        Raises
        ------
        Superseded
            Another model or picture was asked for meanwhile.
        """
        turns = self.begin("subject")
        shown = self.shelf.get(wanted.model, wanted.weights)
        if wanted.picture != UPLOADED:
            picture = pictures.sample(wanted.picture)
        else:
            picture = self._upload or pictures.fitting(shown.kind)  # a link was opened, and the upload is awaited
        if picture.kind and picture.kind != shown.kind and not keep:
            picture = pictures.fitting(shown.kind)
        subject = Subject(shown, picture)
        _ = subject.answer  # a picture that the model does not take fails here
        if not keep:
            wanted = replace(wanted, target=None, layer=None, channel=None)
        if wanted.picture != UPLOADED or self._upload is not None:
            wanted = replace(wanted, picture=picture.key)
        with self._lock:
            if not self.current(turns, "subject"):
                raise Superseded
            names = ("model", "weights", "picture", "target", "layer", "channel")
            loaded = {name: getattr(wanted, name) for name in names}
            self.subject, self.view = subject, wanted if whole else replace(self.view, **loaded)
            self._failures.clear()


def default_view(shelf: Shelf) -> View:
    """Return what a page without a query shows: the first model, with a picture that it can make sense of."""
    model = shelf.choices[0]
    return View(model=model, picture=pictures.fitting("fashion").key if model == "zfnet-fashion" else "photograph")


def projectors() -> list[str]:
    """Return the methods that can project a unit: those given by a table of inverse layers."""
    import attribkit
    from attribkit.api import is_table

    return [name for name, info in attribkit.methods().items() if is_table(info.load()())]


def _known_methods(view: View, default: View) -> tuple[View, list[str]]:
    """Return the view without methods that there are not, and what is wrong with it."""
    import attribkit

    known = attribkit.methods()
    unknown = [name for name in dict.fromkeys((*view.methods, view.projector)) if name not in known]
    complaints = [f"there is no method {name!r}: {did_you_mean(name, known)}" for name in unknown]
    methods = tuple(name for name in view.methods if name in known)
    projector = view.projector
    if projector != default.projector and projector not in (able := projectors()):
        if projector in known:
            complaints.append(f"the method {projector!r} cannot project a unit; those that can: {', '.join(able)}")
        projector = default.projector
    return replace(view, methods=methods or default.methods, projector=projector), complaints
