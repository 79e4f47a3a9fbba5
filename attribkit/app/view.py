"""What somebody looks at: the state that a link carries."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from attribkit.errors import InputError

SIGNS = ("signed", "positive", "negative", "absolute")
"""What of a map is drawn: its signed sum over channels, one sign of that, or |values| summed over channels."""

TABS = ("maps", "units", "occlusion", "save")
"""The parts of the page."""

UPLOADED = "upload"
"""The picture is the user's own: no link holds it."""

WINDOW = (4, 512)
"""The least and the greatest side, in pixels, of an occluding window; its stride may be 1."""


@dataclass(frozen=True)
class Display:
    """How maps are drawn; changing it computes nothing anew.

    Attributes
    ----------
    opacity
        Of the map over the picture: 0 shows the picture alone, 1 the map alone.
    sign
        One of `SIGNS`.
    percentile
        Colours saturate at this percentile of the non-zero strengths.
    """

    opacity: float = 0.85
    sign: str = "absolute"
    percentile: float = 99.5

    def __post_init__(self) -> None:
        if not 0.0 <= self.opacity <= 1.0:
            raise InputError(f"opacity must be between 0 and 1, got {self.opacity:g}")
        if self.sign not in SIGNS:
            raise InputError(f"sign must be one of {', '.join(SIGNS)}, got {self.sign!r}")
        if not 50.0 <= self.percentile <= 100.0:
            raise InputError(f"percentile must be between 50 and 100, got {self.percentile:g}")


@dataclass(frozen=True)
class View:
    """What somebody looks at.

    Attributes
    ----------
    model, weights
        The model's name, and a checkpoint of the folder that the server was given, or ``""``.
    picture
        A sample's key, or `UPLOADED`.
    target
        The class that is explained; None: the most probable one.
    methods
        Whose maps stand side by side.
    tab
        One of `TABS`.
    layer, channel
        The feature map that is looked at; None: the middle one of the useful layers, its strongest map.
    projector
        The method that projects it.
    window, stride
        Of the occlusion, in pixels; None: the method's own defaults.
    display
        How maps are drawn.

    Raises
    ------
    InputError
        A field has a value that it cannot have.
    """

    model: str
    weights: str = ""
    picture: str = "photograph"
    target: int | None = None
    methods: tuple[str, ...] = ("gradient", "guided_backprop", "deconvnet", "occlusion")
    tab: str = TABS[0]
    layer: str | None = None
    channel: int | None = None
    projector: str = "deconvnet"
    window: int | None = None
    stride: int | None = None
    display: Display = field(default_factory=Display)

    def __post_init__(self) -> None:
        if self.tab not in TABS:
            raise InputError(f"tab must be one of {', '.join(TABS)}, got {self.tab!r}")
        for name in ("target", "channel"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise InputError(f"{name} must be 0 or more, got {value}")
        for name, least in (("window", WINDOW[0]), ("stride", 1)):
            value = getattr(self, name)
            if value is not None and not least <= value <= WINDOW[1]:
                raise InputError(f"{name} must be between {least} and {WINDOW[1]} pixels, got {value}")

    @property
    def occlusion_options(self) -> dict[str, int]:
        """The options of the occlusion that differ from the method's defaults."""
        return {name: value for name in ("window", "stride") if (value := getattr(self, name)) is not None}


FIELDS = tuple(field.name for field in (*fields(View), *fields(Display)) if field.name != "display")
"""Every name that a link may hold."""
