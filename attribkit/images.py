"""Reading photographs safely: every kind of picture becomes upright 8-bit RGB, every bad file one clear line.

Needs Pillow and NumPy only, not torch.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, ImageFile, ImageOps

from attribkit.errors import ImageError

__all__ = ["IMAGE_SUFFIXES", "check_size", "decode_image", "find_images", "read_image", "sample_image_path", "to_rgb"]

#: Formats that are tried. Pillow decodes each itself; PostScript, which it hands to another program, is left out.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")

#: File names that `find_images` takes for images in a directory (lower case).
IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
    | {".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".avif"}
)

#: The longer side may be this many times the shorter one: resizing the shorter side to 256 must not blow the other up.
MAX_ASPECT = 100


def read_image(path: str | os.PathLike[str]) -> Image.Image:
    """Read one image file as an upright 8-bit RGB image.

    EXIF rotation is applied, transparency is composited on white, 16-bit grey is scaled by its range (65535), CMYK and
    palettes are converted; of an animation the first frame is taken. The file is closed before this returns.

    Parameters
    ----------
    path
        A JPEG, PNG, WebP, GIF, BMP, TIFF, PNM, JPEG 2000 or AVIF file; the content decides, not the name.

    Returns
    -------
    PIL.Image.Image
        Mode ``"RGB"``, loaded.

    Raises
    ------
    ImageError
        If the file is missing, a directory, a pipe, empty, unreadable, truncated, no image, smaller than 2×2 pixels,
        more than 100 times as long as wide, or larger than Pillow's limit against decompression bombs
        (``PIL.Image.MAX_IMAGE_PIXELS``, about 89 million pixels; it is checked before anything is decoded).
    """
    name = os.fspath(path)
    try:
        if os.path.isdir(name):
            raise ImageError(f"{name}: is a directory, not an image file")
        if not stat.S_ISREG(os.stat(name).st_mode):  # opening a pipe that nobody writes to would wait for ever
            raise ImageError(f"{name}: is a pipe, socket or device, not an image file")
        with open(name, "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise ImageError(f"{name}: the file is empty (0 bytes)")
            return decode_image(file, name)
    except FileNotFoundError:
        raise ImageError(f"{name}: no such file") from None
    except OSError as error:
        raise ImageError(f"{name}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"{name!r}: is no usable file name: {error}") from error  # an embedded null character


def to_rgb(image: Image.Image) -> Image.Image:
    """Return ``image`` upright and as 8-bit RGB, whatever its mode.

    ``I;16`` is scaled from 0…65535. ``I`` (32-bit) too when its values lie in that range, and ``F`` (float) is taken as
    0…1 or 0…255 when its values lie there; otherwise the range of the values is stretched to 0…255. Transparency is
    composited on white.

    Parameters
    ----------
    image
        Any Pillow image; it is not changed.

    Raises
    ------
    ImageError
        If a float image holds NaN or infinite values, or Pillow cannot convert the mode.
    """
    image = _upright(image)
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return _from_wide_grey(image).convert("RGB")
    try:
        if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
            if image.mode in ("La", "RGBa"):  # premultiplied; Pillow knows one way out of each
                image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
        image = image.convert("RGB")
    except ValueError as error:
        raise ImageError(f"an image of mode {image.mode!r} cannot be converted to RGB: {error}") from error
    image.info = {}  # a leftover "transparency" or EXIF entry would be applied again by the next conversion
    return image


def find_images(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[Path]:
    """List the image files that ``paths`` name.

    A directory is searched with all its sub-directories for `IMAGE_SUFFIXES`, in sorted order; hidden files and
    directories are passed over. Anything else is taken as a file and listed as it is, existing or not, so that one
    missing file among many is `read_image`'s error and does not stop the others. A file named twice is listed once.

    Parameters
    ----------
    paths
        One path or several.

    Raises
    ------
    ImageError
        If ``paths`` is empty, or a directory holds no image or cannot be listed.
    """
    if isinstance(paths, str | os.PathLike):
        paths = [paths]
    found: dict[Path, None] = {}
    for path in map(Path, paths):
        found.update(dict.fromkeys(_search(path) if os.path.isdir(path) else [path]))
    if not found:
        raise ImageError("no image was named: give at least one file or directory")
    return list(found)


def sample_image_path() -> Path:
    """Return the path of the sample photograph that ships with the package: a cat, CC0 (see CREDITS.md beside it)."""
    return Path(str(resources.files("attribkit") / "assets" / "sample" / "chelsea.png"))


def check_size(size: tuple[int, int], name: str = "image") -> None:
    """Check that an image of ``size`` (width, height) is neither too small nor too elongated to be of use.

    Raises
    ------
    ImageError
        If a side is shorter than 2 pixels or one is more than 100 times the other; ``name`` starts the message.
    """
    width, height = size
    if min(size) < 2:
        raise ImageError(f"{name}: is {width}×{height} pixels; at least 2×2 are needed")
    if max(size) > MAX_ASPECT * min(size):
        raise ImageError(f"{name}: is {width}×{height} pixels; a side may be at most {MAX_ASPECT} times the other")


def decode_image(file: IO[bytes], name: str) -> Image.Image:
    """Read an image from an open file as `read_image` does.

    Parameters
    ----------
    file
        A binary file that can be sought in, at its start.
    name
        What errors call it.

    Raises
    ------
    ImageError
        If it is no image that can be used.
    """
    try:
        image = identify(file, name)
        limit = Image.MAX_IMAGE_PIXELS
        width, height = image.size
        if limit is not None and width * height > limit:
            raise ImageError(
                f"{name}: is {width}×{height} pixels; more than {limit:,} are refused as a possible decompression bomb"
            )
        check_size(image.size, name)
        image.load()
        return to_rgb(image)
    except ImageError as error:
        message = str(error)
        raise error if message.startswith(name) else ImageError(f"{name}: {message}") from error
    # A damaged file can make a decoder raise nearly anything (OSError, SyntaxError, struct.error, zlib.error, …).
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"{name}: cannot be decoded, the file is damaged or truncated: {reason}") from error


def identify(file: IO[bytes], name: str) -> ImageFile.ImageFile:
    """Open the image without decoding it, as ``Image.open`` does.

    ``Image.open`` itself warns about images above Pillow's limit before the caller can look at the size, and silencing
    a warning (``warnings.catch_warnings``) is not thread safe. Pillow's table of formats gives the same image
    unchecked.
    """
    Image.init()
    prefix = file.read(16)
    reason = ""
    for kind in FORMATS:
        if kind not in Image.OPEN:  # this Pillow was built without it
            continue
        factory, accept = Image.OPEN[kind]
        accepted: Any = accept(prefix) if accept else True
        if isinstance(accepted, str):  # the format is recognised, its library is not there
            reason = f": {accepted}"
        elif accepted:
            file.seek(0)
            try:
                return factory(file, name)
            except (SyntaxError, IndexError, TypeError, struct.error) as error:  # Pillow's ways to say "not mine"
                detail = " ".join(str(error).split()) or type(error).__name__
                reason = f"; it begins like {kind} but is damaged or truncated: {detail}"
    raise ImageError(f"{name}: is not an image of a kind that can be read ({', '.join(FORMATS)}){reason}")


def _upright(image: Image.Image) -> Image.Image:
    try:
        upright = ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF data must not cost the picture
        return image.copy()
    return image.copy() if upright is None else upright


def _from_wide_grey(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        row, column = np.argwhere(~np.isfinite(values))[0]
        raise ImageError(f"holds NaN or infinite values, the first at row {row}, column {column}")
    low, high = float(values.min()), float(values.max())
    tops = (1.0, 255.0) if image.mode == "F" else (65535.0,)
    top = next((top for top in tops if low >= 0 and high <= top), None)
    if top is None:
        values, top = values - low, max(high - low, 1e-300)
    return Image.fromarray(np.rint(values * 255 / top).astype(np.uint8))


def _search(directory: Path) -> list[Path]:
    def refuse(error: OSError) -> None:
        raise ImageError(f"{error.filename}: cannot be listed: {error.strerror or error}") from error

    found: list[Path] = []
    for folder, folders, files in os.walk(directory, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        names = (name for name in files if not name.startswith("."))
        found += [Path(folder, name) for name in names if Path(name).suffix.lower() in IMAGE_SUFFIXES]
    if not found:
        raise ImageError(f"{directory}: holds no image ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return sorted(found)
