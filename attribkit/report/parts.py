"""What a report is made of: images, what each method said about them, and what made the page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import groupby

from attribkit.report.figures import LegendEntry, Picture


@dataclass(frozen=True)
class Figure:
    """One picture of the page.

    Attributes
    ----------
    kind
        ``signed``, ``magnitude``, ``colour``, ``score`` or ``classes``: decides on the scale below the picture.
    title
        A few words above the picture.
    picture
        The picture itself; of a ``magnitude``, the layer that lies over the photograph.
    alt
        What a reader who cannot see the picture is told.
    legend
        The classes of a class map.
    """

    kind: str
    title: str
    picture: Picture
    alt: str
    legend: tuple[LegendEntry, ...] = ()


@dataclass(frozen=True)
class MethodSection:
    """What one method said about one image.

    Attributes
    ----------
    name, title, summary
        The method's name as it is typed, as it is read, and its one-line summary.
    target
        The class or the unit that is explained, in words.
    score, probability
        The target's score and, of a class, its probability, formatted.
    seconds
        How long the method took.
    coverage
        Which operations were rewritten, in plain words.
    figures
        Its pictures.
    error
        Why there are none, where the method failed.
    source
        Where the method was published.
    group
        What the method came with; the methods of one group stand together under it.
    value
        The score as a number, by which images are sorted.
    """

    name: str
    title: str
    summary: str
    target: str = ""
    score: str = ""
    probability: str = ""
    seconds: float | None = None
    coverage: str = ""
    figures: tuple[Figure, ...] = ()
    error: str | None = None
    source: str = ""
    group: str = ""
    value: float | None = None


@dataclass(frozen=True)
class TopClass:
    """One of the most probable classes: index, name and probability (0 to 1)."""

    index: int
    label: str
    probability: float


@dataclass(frozen=True)
class ImageSection:
    """One explained image.

    Attributes
    ----------
    name
        The name of its files, unique in the report.
    path
        The file, as it was given.
    photograph, view
        The photograph, and what the model was shown of it.
    size
        Width and height of the photograph in pixels.
    top
        The most probable classes, the most probable first.
    methods
        What each method said.
    question
        What the methods answer, such as ``Why “tiger cat”?``: the page's heading when there is one image.
    shown
        Width and height of what the model was shown, where ``view`` is smaller.
    problem
        What went wrong with the image, where there are maps all the same.
    """

    name: str
    path: str
    photograph: Picture
    view: Picture
    size: tuple[int, int]
    top: tuple[TopClass, ...]
    methods: tuple[MethodSection, ...]
    question: str = ""
    shown: tuple[int, int] | None = None
    problem: str = ""

    @property
    def groups(self) -> list[tuple[str, list[tuple[int, MethodSection]]]]:
        """The methods with their places, from 1, by what they came with; neighbours of one group stand together."""
        numbered = enumerate(self.methods, start=1)
        return [(group, list(those)) for group, those in groupby(numbered, key=lambda pair: pair[1].group)]


@dataclass(frozen=True)
class Failure:
    """An image that could not be explained, and why."""

    path: str
    error: str


@dataclass(frozen=True)
class About:
    """What made the page.

    Attributes
    ----------
    model, weights
        The model's name and where its weights came from.
    command
        The command line, or the call.
    facts
        Further rows of the table at the end of the page: device, versions, …
    """

    model: str
    weights: str
    command: str
    facts: Mapping[str, str] = field(default_factory=dict)
