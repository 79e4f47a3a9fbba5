"""What is to be explained, one image after the other: files, folders, patterns, lists and tar files.

Nothing is gathered that need not be: a folder's names are held while it is walked, a tar file's never. Needs neither
torch nor Pillow's decoders.
"""

from __future__ import annotations

import glob
import os
import re
import tarfile
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

from attribkit.images import IMAGE_SUFFIXES
from attribkit.store.layout import Place

__all__ = ["is_archive", "list_images"]

ARCHIVES = (".tar", ".tar.gz", ".tgz")
LISTS = (".txt",)

MAX_MEMBER = 2**30
"""Bytes of an image in a tar file: a longer one is refused unread."""

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_MOST_SHARDS = 1_000_000


def list_images(sources: Iterable[str | os.PathLike[str]]) -> Iterator[Place]:
    """List images.

    Parameters
    ----------
    sources
        - a file: it is listed, there or not, so that one missing file among many is one failure;
        - a folder: the images in it and its sub-folders, by their suffix, in sorted order, hidden ones passed over;
        - a pattern such as ``photos/**/*.jpg``: what it matches, in sorted order;
        - a list, ``NAME.txt``: one path a line, relative to the list's folder where it is there, else to the working
          directory;
        - a tar file, ``NAME.tar``, ``.tar.gz`` or ``.tgz``: the images in it, in their order. A member ``key.jpg`` is
          called ``NAME.tar/key.jpg``; a name is only a name, whatever it looks like. ``shard-{000..099}.tar`` stands
          for a hundred of them.

    Yields
    ------
    Place
        Where something cannot be listed, it yields a place with a ``problem``. An image may come more than once.
    """
    for source in sources:
        for text in _expanded(os.fspath(source)):
            yield from _listed(text)


def is_archive(path: str) -> bool:
    """Tell whether a path names a tar file."""
    return path.lower().endswith(ARCHIVES)


def _expanded(text: str) -> Iterator[str]:
    """Yield what a range such as ``{000..099}`` stands for."""
    found = _RANGE.findall(text)
    if not found or os.path.lexists(text):
        yield text
        return
    ranges = [range(int(low), int(high) + 1) for low, high in found]
    count = 1
    for numbers in ranges:
        count *= len(numbers)
    if not 0 < count <= _MOST_SHARDS:
        yield text
        return
    widths = [len(low) for low, _ in found]
    pieces = _RANGE.sub("\0", text).split("\0")
    for chosen in product(*ranges):
        filled = [f"{number:0{width}d}" for number, width in zip(chosen, widths, strict=True)]
        yield "".join(piece + number for piece, number in zip(pieces, [*filled, ""], strict=True))


def _listed(text: str) -> Iterator[Place]:
    try:
        folder, there = os.path.isdir(text), os.path.lexists(text)
    except ValueError:  # a null character
        folder, there = False, True
    if folder:
        yield from _found(text, _walk(text), f"holds no image ({', '.join(sorted(IMAGE_SUFFIXES))})")
    elif not there and glob.has_magic(text):
        yield from _found(text, _matches(text), "no file fits this pattern")
    elif there and text.lower().endswith(LISTS):
        yield from _found(text, _of_list(text), "the list is empty: one path a line is needed")
    elif there and is_archive(text):
        yield from _found(text, _members(text), "holds no image")
    else:
        yield Place(text)


def _found(name: str, places: Iterator[Place], otherwise: str) -> Iterator[Place]:
    none = True
    for place in places:
        none = False
        yield place
    if none:
        yield Place(name, problem=otherwise)


def _walk(folder: str) -> Iterator[Place]:
    """Walk a folder; the order is that of the sorted paths, part by part."""
    try:
        with os.scandir(folder) as entries:
            found = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries)
    except OSError as error:
        yield Place(folder, problem=f"cannot be listed: {error.strerror or error}")
        return
    for name, is_folder in found:
        if name.startswith("."):
            continue
        path = str(Path(folder, name))
        if is_folder:
            yield from _walk(path)
        elif os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not os.path.isdir(path):
            yield Place(path)


def _matches(pattern: str) -> Iterator[Place]:
    for path in sorted(glob.iglob(pattern, recursive=True)):
        if not os.path.isdir(path):
            yield from _listed(path) if path.lower().endswith((*ARCHIVES, *LISTS)) else (Place(path),)
        elif not pattern.rstrip("/").endswith("**"):  # "**" names the folders' contents already
            yield from _walk(path)


def _of_list(path: str) -> Iterator[Place]:
    beside = Path(path).parent
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as lines:
            for line in lines:
                name = line.strip("\r\n")
                if not name.strip():
                    continue
                if "\0" in name:
                    yield Place(name.replace("\0", "\\0"), problem="is no usable file name: it holds a null character")
                    continue
                near = str(beside / name)
                yield Place(name, near if near != name and os.path.lexists(near) else "")
    except OSError as error:
        yield Place(path, problem=f"cannot be read: {error.strerror or error}")


def _members(path: str) -> Iterator[Place]:
    """Go through a tar file's headers; where it is damaged, what came before counts."""
    try:
        length = os.path.getsize(path)
        packed = not path.lower().endswith(".tar")
        opened: Any = tarfile.open(path, "r:gz" if packed else "r:")  # noqa: SIM115 (closed by the next line)
        with opened as archive:
            while (member := archive.next()) is not None:
                archive.members = []  # tarfile would keep every header
                name = f"{path}/{member.name}"
                if os.path.splitext(member.name)[1].lower() not in IMAGE_SUFFIXES:
                    continue
                if not member.isreg() or member.issparse():
                    yield Place(name, path, member.offset, 0, "is a link or device in the tar file, not an image")
                elif not packed and member.offset_data + member.size > length:
                    yield Place(name, path, member.offset, 0, "is cut off: the tar file ends within it")
                elif member.size > MAX_MEMBER:
                    yield Place(name, path, member.offset, 0, f"is {member.size:,} bytes long; {MAX_MEMBER:,} are read")
                elif member.size == 0:
                    yield Place(name, path, member.offset, 0, "the file is empty (0 bytes)")
                else:
                    yield Place(name, path, member.offset_data, member.size)
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        yield Place(path, problem=f"is a damaged tar file, or none: {reason}")
