"""Which class of a model is which class of a set of images: by name where both have names, else by order."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from attribkit.errors import InputError, UnknownNameError, did_you_mean
from attribkit.models.labels import imagenet_labels

__all__ = ["are_names", "class_numbers", "matched"]


def are_names(labels: Sequence[str] | None) -> bool:
    """Tell whether labels are names: there are some, and they are not just the classes' numbers."""
    return labels is not None and list(labels) != [str(number) for number in range(len(labels))]


def matched(names: Sequence[str], labels: Sequence[str]) -> list[int | None]:
    """Return which label each name is, or None.

    A name is a label as it stands; or in other letters, as a folder must write it (``T-shirt-top`` for
    ``T-shirt/top``); or one of the synonyms that a label lists with commas; or ImageNet's number (``n01440764``) for
    one of its classes.

    Raises
    ------
    InputError
        If a name is several labels.
    """
    if list(names) == list(labels):
        return list(range(len(labels)))
    exact, folded, synonyms = (_places(labels, read) for read in (lambda t: [t], lambda t: [_folded(t)], _synonyms))
    if tuple(labels) == imagenet_labels():
        from timm.data.imagenet_info import ImageNetInfo

        info: Any = ImageNetInfo("imagenet-1k")  # timm leaves it untyped
        synonyms.update({name: [index] for index, name in enumerate(info.label_names())})
    found: list[int | None] = []
    for place, name in enumerate(names):
        places = exact.get(name) or folded.get(_folded(name)) or synonyms.get(_folded(name)) or []
        if len(places) > 1:
            # ImageNet has two cranes: in both lists the first is the first
            before, twins = names[:place].count(name), names.count(name)
            if twins != len(places):
                raise InputError(
                    f"class {name!r} may be any of the model's {', '.join(repr(labels[i]) for i in places)}"
                )
            places = places[before : before + 1]
        found.append(places[0] if places else None)
    return found


def class_numbers(
    names: Sequence[str],
    labels: Sequence[str] | None,
    count: int | None,
    used: npt.NDArray[np.int64],
    *,
    data: str,
    model: str,
) -> npt.NDArray[np.int64]:
    """Return the model's class for each class of the data; -1 for one that is not used and the model does not have.

    Where both sides have names they are matched by name, and the data may have fewer classes than the model. Where one
    has none, class k of the data is the model's class k, and both need as many.

    Parameters
    ----------
    names, labels
        The data's class names, and the model's.
    count
        How many classes the model has; None where that is not known.
    used
        The classes of the data that images are of.
    data, model
        What errors call the two.

    Raises
    ------
    UnknownNameError
        If the model has no class of that name.
    InputError
        If a name is several of the model's, or the numbers of classes differ.
    """
    if labels is not None and count is not None and len(labels) != count:
        labels = None  # they belong to another classifier
    if labels is not None and are_names(names) == are_names(labels):
        try:
            found = matched(names, labels)
        except InputError as error:
            raise InputError(f"{data}: {error}; name the classes as {model} does") from error
        for place in np.unique(used).tolist():
            if found[place] is None:
                raise UnknownNameError(
                    f"{data}: class {names[place]!r} is not among the {len(labels)} class names of {model}:"
                    f" {did_you_mean(names[place], labels)}"
                )
        return np.asarray([-1 if number is None else number for number in found], dtype=np.int64)
    if count is not None and count != len(names):
        nameless = model if not are_names(labels) else data
        raise InputError(
            f"{data} has {len(names)} classes and {model} {count}: {nameless} has no class names, so that classes can"
            " only be matched by their order, which takes as many of them"
        )
    return np.arange(len(names), dtype=np.int64)


def _folded(text: str) -> str:
    """Return a name in lower case, all that is neither letter nor digit being one space."""
    return " ".join(re.split(r"[\W_]+", text.casefold())).strip()


def _synonyms(label: str) -> list[str]:
    parts = label.split(",")
    return [_folded(part) for part in parts] if len(parts) > 1 else []


def _places(labels: Sequence[str], read: Callable[[str], list[str]]) -> dict[str, list[int]]:
    """Return which labels are read as what."""
    found: dict[str, list[int]] = {}
    for index, label in enumerate(labels):
        for text in dict.fromkeys(read(label)):
            if text:
                found.setdefault(text, []).append(index)
    return found
