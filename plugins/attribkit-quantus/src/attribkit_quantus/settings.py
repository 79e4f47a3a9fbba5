"""What an evaluation is asked to do, and the measures it knows."""

from __future__ import annotations

from dataclasses import dataclass, fields

from attribkit.errors import InputError, InputTypeError, UnknownNameError, did_you_mean


@dataclass(frozen=True)
class Measure:
    """One measure of the table.

    Attributes
    ----------
    name
        As it is typed and stands in the CSV files.
    title
        As it is read.
    better
        ``"lower"``, ``"higher"``, or ``""`` where neither is better as such.
    words
        What it is, in one or two sentences, for the page.
    part
        What has to be computed for it.
    """

    name: str
    title: str
    better: str
    words: str
    part: str


MEASURES = (
    Measure(
        "deletion",
        "Deletion",
        "lower",
        "The pixels are blanked from the strongest to the weakest; the area under the curve of the class's probability "
        "(Petsiuk et al. 2018).",
        "faithfulness",
    ),
    Measure(
        "insertion",
        "Insertion",
        "higher",
        "The pixels of the image replace those of a blurred copy, from the strongest to the weakest; the area under "
        "the curve of the class's probability (Petsiuk et al. 2018).",
        "faithfulness",
    ),
    Measure(
        "pixel_flipping",
        "Pixel flipping",
        "higher",
        "Patches are replaced by noise from the strongest on; by how much the class's score has fallen, averaged over "
        "the steps (Bach et al. 2015; Samek et al. 2017).",
        "faithfulness",
    ),
    Measure(
        "randomisation",
        "Upper layers random",
        "lower",
        "Rank correlation of the map with the map after the upper third of the layers lost what they had learned, "
        "signs counted (Adebayo et al. 2018). A map that stays the same does not depend on them.",
        "randomisation",
    ),
    Measure(
        "randomisation_absolute",
        "The same, signs dropped",
        "lower",
        "The same of the maps' absolute values. What is zero or constant in any map of an image keeps this above 0.",
        "randomisation",
    ),
    Measure(
        "grid_pointing_game",
        "Grid pointing game",
        "higher",
        "Images of different classes stand in one grid, one of the classes is explained; the share of what speaks for "
        "it that lies in the right cell (Zhang et al. 2018; Böhle et al. 2021).",
        "grid_pointing_game",
    ),
    Measure(
        "sensitivity",
        "Max-sensitivity",
        "lower",
        "The largest relative change of the map among images with a little noise added (Yeh et al. 2019).",
        "sensitivity",
    ),
    Measure(
        "complexity",
        "Complexity",
        "lower",
        "Entropy, in nats, of the pixels' shares in the map (Bhatt et al. 2020).",
        "complexity",
    ),
    Measure(
        "sparseness",
        "Sparseness",
        "higher",
        "Gini index of the pixels' absolute values: 0 when all are equal, 1 when one has everything "
        "(Chalasani et al. 2020).",
        "complexity",
    ),
    Measure("seconds", "Seconds an image", "lower", "Time for one map, in batches.", "runtime"),
)
"""Every measure, in the order of the table."""

PARTS = tuple(dict.fromkeys(measure.part for measure in MEASURES))
"""What can be computed on its own, in the order in which it is."""


@dataclass(frozen=True)
class Settings:
    """How an evaluation is made.

    Attributes
    ----------
    images
        How many images; fewer where the data hold fewer.
    subset
        How many of them for what takes many maps of each image: randomisation and sensitivity.
    parts
        Which of `PARTS` to compute.
    reading
        How a map [C, H, W] becomes a number a pixel where the strongest are taken first: ``"absolute"``, the sum of the
        absolute values over the channels, or ``"signed"``, the sum of the values.
    steps
        Steps of deletion and insertion, and of pixel flipping.
    flips
        How many patches pixel flipping replaces in all.
    grid
        Images a side of a grid.
    confidence
        Images enter a grid only if the model gives its class this probability or more.
    repeats, radius
        Sensitivity: how many noisy images, and the noise's amplitude as a share of the image's range.
    depths
        The most depths at which randomised networks are looked at.
    batch_size
        Images that go through the model at once.
    seed
        Of everything random.
    resamples, level
        Of the bootstrap, and the coverage of its intervals.

    Raises
    ------
    InputError
        A number is out of its range.
    """

    images: int = 200
    subset: int = 50
    parts: tuple[str, ...] = PARTS
    reading: str = "absolute"
    steps: int = 20
    flips: int = 100
    grid: int = 2
    confidence: float = 0.9
    repeats: int = 10
    radius: float = 0.02
    depths: int = 10
    batch_size: int = 32
    seed: int = 0
    resamples: int = 2000
    level: float = 0.95

    def __post_init__(self) -> None:
        """Check the numbers."""
        for item in fields(self):
            value = getattr(self, item.name)
            if item.type == "int":
                if not isinstance(value, int) or isinstance(value, bool):
                    raise InputTypeError(f"{item.name} must be an int, got {value!r}")
                lowest = {"seed": 0, "grid": 2}.get(item.name, 1)
                if value < lowest:
                    raise InputError(f"{item.name} must be at least {lowest}, got {value}")
        for name, low, high in (("confidence", 0, 1), ("level", 0, 1), ("radius", 0, None)):
            value = getattr(self, name)
            if not (isinstance(value, int | float) and value > low and (high is None or value < high)):
                rule = f"between {low} and {high}" if high is not None else f"above {low}"
                raise InputError(f"{name} must lie {rule}, got {value!r}")
        if self.reading not in ("signed", "absolute"):
            raise InputError(f"reading must be 'signed' or 'absolute', got {self.reading!r}")
        for part in self.parts:
            if part not in PARTS:
                raise UnknownNameError(f"measure {part!r} is not known: {did_you_mean(part, PARTS)}")
