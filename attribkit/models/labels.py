"""Class names: ImageNet's, or one a line from a file."""

from __future__ import annotations

import functools
import os

from attribkit.errors import InputError

__all__ = ["imagenet_labels", "labels_for", "read_labels"]


def read_labels(path: str | os.PathLike[str], num_classes: int | None = None) -> list[str]:
    """Read class names from a UTF-8 text file, one a line, the first for class 0.

    Spaces around a name are stripped; empty lines at the end are ignored.

    Parameters
    ----------
    path
        The file.
    num_classes
        How many names there must be; None takes what is there.

    Returns
    -------
    list of str
        The names.

    Raises
    ------
    InputError
        If the file cannot be read, is no text, is empty, has an empty line between names or holds another number of
        names than ``num_classes``.
    """
    name = os.fspath(path)
    try:
        with open(name, encoding="utf-8-sig") as file:
            lines = [line.strip() for line in file]
    except UnicodeDecodeError as error:
        raise InputError(f"label file {name}: is not UTF-8 text (byte {error.start})") from error
    except (OSError, ValueError) as error:
        raise InputError(f"label file {name}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    while lines and not lines[-1]:
        lines.pop()
    if not lines:
        raise InputError(f"label file {name}: is empty; it must hold one class name a line")
    if "" in lines:
        raise InputError(f"label file {name}: line {lines.index('') + 1} is empty; every class needs a name")
    if num_classes is not None and len(lines) != num_classes:
        raise InputError(f"label file {name}: has {len(lines)} names, but the model has {num_classes} classes")
    return lines


def labels_for(num_classes: int | None) -> list[str] | None:
    """Return ImageNet's names when there are 1000 classes, else None: no other number says what the classes are."""
    return list(imagenet_labels()) if num_classes == 1000 else None


@functools.cache
def imagenet_labels() -> tuple[str, ...]:
    """Return the 1000 class names of ImageNet-1k, as timm has them, in the order of the classes."""
    from timm.data.imagenet_info import ImageNetInfo

    return tuple(ImageNetInfo("imagenet-1k").label_descriptions())
