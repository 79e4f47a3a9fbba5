"""Record: one image explained by one method."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from attribkit.errors import AttribkitError
from attribkit.store.errors import StoreError
from attribkit.store.layout import DONE, FAILED, as_given

if TYPE_CHECKING:
    from torch import Tensor

    from attribkit.store.reader import Store
    from attribkit.targets import Unit

__all__ = ["COLUMNS", "Record"]

COLUMNS = "id, position, image, method, target, score, batch, shard, part, offset, scale, status, error"
"""What a record is made of, as SQL."""


@dataclass(frozen=True)
class Record:
    """One image explained by one method, or the reason why it was not.

    Attributes
    ----------
    image : str
        The path as it was given; of an image in a tar file ``shard.tar/member.jpg``.
    method : str
        The method's name.
    target : int, Unit or None
        What was explained; None where an image failed before its class was known.
    score : float or None
        The target's score.
    status : str
        ``"done"`` or ``"failed"``.
    error : str or None
        Why it failed.
    position : int
        The image's place in the order of the run, from 0.
    shard, offset : str and int, or None
        The file and the row in it that hold the map.
    """

    image: str
    method: str
    target: int | Unit | None
    score: float | None
    status: str
    error: str | None
    position: int
    batch: int
    shard: str | None
    part: int | None = field(repr=False)
    offset: int | None
    scale: float | None = field(repr=False)
    _store: Store = field(repr=False, compare=False)

    @property
    def values(self) -> Tensor | None:
        """The map, signed, [C, H, W] on the CPU; it is read when asked for. None where there is none.

        A map that was kept as float16 comes back as float32, of its own size; one that was shrunk comes as it is kept.

        Raises
        ------
        StoreError
            The shard is missing or damaged.
        """
        if self.status != DONE:
            return None
        kept = self._store.tensor(self, "values")
        if self.scale is None:
            return kept
        return kept.float() * self.scale

    @property
    def extras(self) -> dict[str, Tensor]:
        """What else the method found of this image, such as occlusion's ``score_map``."""
        return self._store.extras(self) if self.status == DONE else {}

    def _repr_html_(self) -> str:
        from attribkit.report.notebook import record_html

        return record_html(self)


def record_from(row: tuple[Any, ...], store: Store) -> Record:
    """Return a record from a row of `COLUMNS`, each value checked for its type.

    Raises
    ------
    StoreError
        A value is not what attribkit writes.
    """
    _, position, image, method, target, score, batch, shard, part, offset, scale, status, error = row
    known = (
        isinstance(position, int)
        and isinstance(method, str)
        and isinstance(batch, int)
        and (target is None or isinstance(target, str))
        and (score is None or isinstance(score, int | float))
        and (scale is None or (isinstance(scale, int | float) and math.isfinite(scale)))
        and (error is None or isinstance(error, str))
        and status in (DONE, FAILED)
        and (
            status == FAILED
            or (isinstance(shard, str) and type(part) is type(offset) is int and min(part, offset) >= 0)
        )
    )
    if not known:
        raise StoreError(f"{str(store.path)!r}: its index is damaged: a record holds {row!r:.200}")
    return Record(
        as_given(image),
        method,
        read_target(target),
        score,
        status,
        error,
        position,
        batch,
        shard,
        part,
        offset,
        scale,
        store,
    )


def write_target(target: int | Unit | None) -> str | None:
    """Return a target as the index keeps it."""
    if target is None:
        return None
    if isinstance(target, int):
        return str(target)
    return json.dumps({"layer": target.layer, "channel": target.channel, "position": target.position,
                       "layout": target.layout})  # fmt: skip


def read_target(text: str | None) -> int | Unit | None:
    """Return a target from the index.

    Raises
    ------
    StoreError
        It is none.
    """
    if text is None:
        return None
    try:
        found = json.loads(text)
        if type(found) is int:
            return found
        from attribkit.targets import Unit

        place = found["position"]
        place = tuple(place) if isinstance(place, list) else place
        return Unit(found["layer"], found["channel"], place, found["layout"])
    except (ValueError, KeyError, TypeError, RecursionError, AttribkitError) as error:
        raise StoreError(f"the index holds {text!r:.80} where a target belongs") from error
