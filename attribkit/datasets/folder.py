"""Folders of image files, sub-folders being classes or parts."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from attribkit.datasets.source import PARTS, ImageSource, choose
from attribkit.errors import InputError
from attribkit.images import IMAGE_SUFFIXES, find_images, read_image


class Folder(ImageSource):
    """Image files, with a class for each where they lie in class folders."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        entries = sorted(entry for entry in _listed(folder) if not entry.name.startswith("."))
        loose = any(entry.suffix.lower() in IMAGE_SUFFIXES and not entry.is_dir() for entry in entries)
        folders = [] if loose else [entry for entry in entries if entry.is_dir()]
        if folders:
            per_class = [find_images(entry) for entry in folders]
            self.labels = tuple(entry.name for entry in folders)
            self._paths = [path for paths in per_class for path in paths]
            self._classes = [index for index, paths in enumerate(per_class) for _ in paths]
        else:
            self._paths, self._classes = find_images(folder), []
        self.ids = tuple(path.relative_to(folder).as_posix() for path in self._paths)

    def load(self, index: int) -> Image.Image:
        return read_image(self._paths[index])

    def label(self, index: int) -> int | None:
        return self._classes[index] if self._classes else None


def folder_parts(folder: Path) -> dict[str, Path]:
    """Return the parts of a folder: all its sub-folders, where they are called so and no image lies beside them."""
    entries = [entry for entry in _listed(folder) if not entry.name.startswith(".")]
    folders = {entry.name.lower(): entry for entry in entries if entry.is_dir()}
    known = {part: next((folders[n] for n in names if n in folders), None) for part, names in PARTS.items()}
    found = {part: path for part, path in known.items() if path is not None}
    loose = any(entry.suffix.lower() in IMAGE_SUFFIXES for entry in entries if not entry.is_dir())
    return found if len(found) == len(folders) and not loose else {}


def open_folder(folder: Path, part: str | None, name: str) -> ImageSource:
    """Open a folder of image files, or the part of it that is asked for."""
    parts = folder_parts(folder)
    if not parts:
        if part is not None:
            raise InputError(f"{name} has no part {part!r}: it is a folder without sub-folders train, val or test")
        return Folder(folder, name)
    chosen = choose(part, tuple(parts), name)
    return Folder(parts[chosen], f"{name} ({chosen})")


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise InputError(f"data {str(folder)!r}: cannot be listed: {error.strerror or error}") from error
