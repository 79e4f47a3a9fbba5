"""The patches of a data set that excite a feature map most: what ``attribkit features`` wrote into a folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attribkit.app.kept import Kept
from attribkit.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

    from attribkit.app.shelf import Shown
    from attribkit.features import Crops

KEPT = 8
"""How many files of crops stay in memory."""


@dataclass(frozen=True)
class Patch:
    """One of the strongest activations of a feature map.

    Attributes
    ----------
    projection, picture
        What it becomes in pixel space, and what the model saw there.
    value
        The activation.
    image
        Which image of the data set.
    """

    projection: Image.Image
    picture: Image.Image
    value: float
    image: str


class Mined:
    """A folder that ``attribkit features`` wrote.

    Parameters
    ----------
    folder
        It.

    Raises
    ------
    InputError
        It is no such folder.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        try:
            record: Any = json.loads((self.folder / "features.json").read_text(encoding="utf-8"))
            self._layers: dict[str, Any] = dict(record["layers"])
            self.data, self.method = str(record["config"]["data"]), str(record["method"])
            self._model, self._weights = str(record["config"]["model"]), str(record["config"]["weights"])
        except OSError as error:
            raise InputError(
                f"the folder of features {str(folder)!r}: features.json cannot be read ({error.strerror}); "
                "attribkit features writes such a folder"
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"the folder of features {str(folder)!r}: its features.json is damaged") from error
        self._kept: Kept[Crops] = Kept(KEPT)

    @property
    def model(self) -> str:
        """The model that was mined."""
        return self._model

    @property
    def layers(self) -> list[str]:
        """The layers that were mined."""
        return list(self._layers)

    def fits(self, shown: Shown) -> bool:
        """Tell whether it is this model, with these weights, that was mined."""
        return shown.loaded.name == self._model and shown.weights_hash == self._weights

    def patches(self, layer: str, channel: int) -> list[Patch]:
        """Return the strongest activations of a feature map; none where it was not mined, or never was active.

        Raises
        ------
        InputError
            The files are damaged.
        """
        from attribkit.features.grid import tiles_of

        try:
            entry = self._layers[layer]
            hits = entry["features"][str(channel)]
            files = entry["files"]["crops"]
        except (KeyError, TypeError):
            return []
        for name in files:
            crops = self._kept.get_or(name, lambda name=str(name): self._crops(name))  # type: ignore[misc]
            if channel in crops.channels:
                tiles = tiles_of(crops, crops.channels.index(channel))
                return [
                    Patch(projection, picture, float(hit["value"]), str(hit["image"]))
                    for hit, (projection, picture) in zip(hits, tiles, strict=False)
                ]
        return []

    def _crops(self, name: str) -> Crops:
        from attribkit.features import Crops

        crops = Crops.load(self.folder / Path(name).name)
        if crops is None:
            raise InputError(f"the folder of features {str(self.folder)!r}: {name} is damaged or gone")
        return crops
