"""The whole of Fig. 2: mining, projection, and the pages that show them."""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup

from attribkit import progress as bars
from attribkit.attribution import write_atomically
from attribkit.datasets import ImageSource, open_images
from attribkit.features._miner import Channels
from attribkit.features.crops import Crops, project_mined
from attribkit.features.fields import ReceptiveField, receptive_fields
from attribkit.features.grid import ContactSheet, columns_of, png, sprite, thumbnail
from attribkit.features.mined import Mined, MinedLayer
from attribkit.features.mining import mine, processes
from attribkit.folders import made_folder
from attribkit.store.folder import writing

if TYPE_CHECKING:
    from os import PathLike

    from attribkit.models.loading import LoadedModel

BLOCK_BYTES = 48 * 2**20
"""About how large the crops held at once, and a file of them, may be."""

STATE = "state"


@dataclass(frozen=True)
class _Block:
    """Some maps of a layer on its page: their sprite, and where their crops lie."""

    maps: list[dict[str, Any]]
    sprite: str
    crops: str


def gallery(
    loaded: LoadedModel,
    source: ImageSource | str | PathLike[str],
    layers: Sequence[str],
    out: str | PathLike[str],
    *,
    channels: Channels = "all",
    top: int = 9,
    method: str = "deconvnet",
    batch_size: int = 64,
    workers: int = 0,
    retry: bool = False,
    command: str = "",
    progress: bool = False,
) -> Mined:
    """Make the pages of a model's features, as the paper's Fig. 2 shows them.

    Written into ``out``: ``index.html`` and one page a layer (``LAYER.html``) with its pictures; ``LAYER.png``, all
    maps on one sheet; ``features.json``, what was found; ``LAYER-NNN.safetensors``, the crops as numbers; and
    ``state/``, by which the same call goes on after an interruption.

    Parameters
    ----------
    loaded
        What `attribkit.load_model` returned.
    source, layers, channels, top, batch_size, workers, retry
        As for `mine`.
    out
        A folder; it is made if it is missing.
    method
        Projects each activation: a method's name.
    command
        The command line, for the page.
    progress
        Whether to show progress bars.

    Returns
    -------
    Mined

    Raises
    ------
    InputError, ModelError
        As for `mine`.
    StoreError
        The folder cannot be written into.
    """
    from attribkit.api import find_method

    find_method(method)  # an unknown one is said before any work is done
    images = source if isinstance(source, ImageSource) else open_images(source)
    folder = Path(out)
    with made_folder(folder, STATE), processes() as rank, bars.shown(progress and rank == 0):
        mined = mine(
            loaded,
            images,
            layers,
            channels=channels,
            top=top,
            batch_size=batch_size,
            workers=workers,
            retry=retry,
            state=folder / STATE,
            name=loaded.name,
        )
        if rank == 0:
            mined = _write(loaded, images, mined, folder, method, command)
    return mined


def _write(loaded: LoadedModel, images: ImageSource, mined: Mined, folder: Path, method: str, command: str) -> Mined:
    fields = receptive_fields(loaded.model, loaded.input_size, list(mined.layers))
    names = file_names(list(mined.layers))
    record = {"attribkit": mined.config["attribkit"], "method": method, **mined.to_dict()}
    rows = []
    missing: dict[int, str] = {}
    for layer in mined.layers.values():
        name = names[layer.layer]
        blocks, sheet = _blocks(loaded, images, mined, layer, fields[layer.layer], folder, name, method, missing)
        _fill_record(record["layers"][layer.layer], blocks, fields[layer.layer], name)
        details = f"{loaded.name}, {images.name}: {mined.config['top']} strongest of {len(images)} images, {method}"
        picture = sheet.picture(layer.layer, details)
        _write_file(folder / f"{name}.png", png(picture))
        _write_file(folder / f"{name}-small.jpg", thumbnail(picture))
        row = {
            "name": layer.layer,
            "file": name,
            "blocks": blocks,
            "maps": len(layer.channels),
            "silent": sum(entry["silent"] for block in blocks for entry in block.maps),
            "grid": layer.grid,
            "field": fields[layer.layer],
        }
        rows.append(row)
    about = {
        "model": loaded.name,
        "weights": loaded.weights or "unknown",
        "data": images.name,
        "images": len(images),
        "method": method,
        "top": mined.config["top"],
        "columns": columns_of(mined.config["top"]),
        "command": command,
        "config": mined.config,
        "skipped": [(images.ids[index], reason) for index, reason in mined.skipped]
        + [(images.ids[index], f"not projected: {reason}") for index, reason in sorted(missing.items())],
    }
    for row in rows:
        _page(folder / f"{row['file']}.html", "layer.html.j2", about=about, rows=rows, row=row)
    _page(folder / "index.html", "index.html.j2", about=about, rows=rows)
    text = json.dumps(record, indent=1, ensure_ascii=True, allow_nan=False)
    _write_file(folder / "features.json", (text + "\n").encode("ascii"))
    return replace(mined, unshown=tuple(sorted(missing.items())))


def _blocks(
    loaded: LoadedModel,
    images: ImageSource,
    mined: Mined,
    layer: MinedLayer,
    fields: ReceptiveField,
    folder: Path,
    name: str,
    method: str,
    missing: dict[int, str],
) -> tuple[list[_Block], ContactSheet]:
    """Project a layer's maps, some at a time; crops that are there already, of the same run, are not made again."""
    sheet = ContactSheet(len(layer.channels), mined.config["top"])
    size = min(fields.size[0], fields.image[0]) * min(fields.size[1], fields.image[1])
    at_once = max(1, min(16, BLOCK_BYTES // (size * loaded.input_size[0] * mined.config["top"] * 5)))
    left_out = [index for index, _ in mined.skipped]  # others are among the strongest once these are tried again
    label = json.dumps({"method": method, "layer": layer.layer, "skipped": left_out, **mined.config}, sort_keys=True)
    blocks = []
    starts = range(0, len(layer.channels), at_once)
    for number, start in enumerate(bars.track(starts, f"projecting {layer.layer}".replace("[", "("))):
        maps = list(range(start, min(start + at_once, len(layer.channels))))
        path = folder / f"{name}-{number:03d}.safetensors"
        crops = Crops.load(path, label)
        if crops is None:
            crops = project_mined(loaded, images, layer, fields, maps, method)
            missing |= crops.missing
            with writing(folder):
                crops.save(path, label if not crops.missing else "incomplete")  # made anew by the next call
        drawn = sprite(crops)
        picture = f"{name}-{number:03d}{drawn.suffix}"
        _write_file(folder / picture, drawn.data)
        sheet.add(crops)
        entries = [_entry(layer, index, row, drawn, len(maps), crops, images) for row, index in enumerate(maps)]
        blocks.append(_Block(entries, picture, path.name))
    return blocks, sheet


def _entry(
    layer: MinedLayer, index: int, row: int, drawn: Any, rows: int, crops: Crops, images: ImageSource
) -> dict[str, Any]:
    """Return what the page says of one map."""
    hits = list(layer.hits(index))
    return {
        "channel": layer.channels[index],
        "row": 0 if rows == 1 else 100 * row / (rows - 1),
        "rows": rows,
        "width": drawn.width,
        "height": drawn.height,
        "pixelated": drawn.suffix == ".png",
        "silent": not hits or hits[0].value == 0,
        "hits": [
            {
                "id": images.ids[hit.image],
                "value": f"{hit.value:.4g}".replace("-", "\N{MINUS SIGN}"),
                "position": f"({hit.position[0]}, {hit.position[1]})"
                if isinstance(hit.position, tuple)
                else hit.position,
                "label": _label(images, hit.image),
                "box": crops.boxes[row, hit.rank].tolist(),
            }
            for hit in hits
        ],
    }


def _label(images: ImageSource, index: int) -> str:
    label = images.label(index)
    return images.labels[label] if label is not None and images.labels is not None else ""


def _fill_record(entry: dict[str, Any], blocks: list[_Block], fields: ReceptiveField, name: str) -> None:
    """Add the fields' boxes and the files to a layer's part of ``features.json``."""
    entry["field"] = {"size": fields.size, "stride": fields.stride, "offset": fields.offset, "unknown": fields.unknown}
    entry["files"] = {"page": f"{name}.html", "sheet": f"{name}.png", "crops": [block.crops for block in blocks]}
    for block in blocks:
        for drawn in block.maps:
            for hit, shown in zip(entry["features"][str(drawn["channel"])], drawn["hits"], strict=True):
                hit["box"] = shown["box"]


def file_names(layers: Sequence[str]) -> dict[str, str]:
    """Return a file name for each layer, unique whatever the case: what is no letter, digit, dot or dash is a ``_``."""
    found: dict[str, str] = {}
    taken = {"index", "features"}
    for layer in layers:
        stem = re.sub(r"[^A-Za-z0-9._-]", "_", layer)[:120].strip(".") or "layer"
        name, number = stem, 2
        while name.lower() in taken:
            name, number = f"{stem}_{number}", number + 1
        taken.add(name.lower())
        found[layer] = name
    return found


def figure(
    out: str | PathLike[str],
    loaded: LoadedModel,
    source: ImageSource | str,
    layer: str,
    *,
    maps: int = 12,
    method: str = "deconvnet",
) -> Path:
    """Draw the maps of a layer that respond most strongly, as one picture: the paper's Fig. 2.

    Parameters
    ----------
    out
        The PNG to write.
    loaded, source, layer, method
        As for `gallery`.
    maps
        How many feature maps: those with the strongest single activation, in order of their channel.

    Raises
    ------
    InputError, ModelError
        As for `mine`.
    """
    images = source if isinstance(source, ImageSource) else open_images(source)
    mined = mine(loaded, images, [layer])
    found = mined.layers[layer]
    strongest = found.top.values[:, 0].argsort(descending=True, stable=True)[:maps].sort().values.tolist()
    fields = receptive_fields(loaded.model, loaded.input_size, [layer])[layer]
    crops = project_mined(loaded, images, found, fields, strongest, method)
    sheet = ContactSheet(len(strongest), mined.config["top"], pixels=1.6e6)
    sheet.add(crops)
    path = Path(out)
    _write_file(path, png(sheet.picture(layer, f"{loaded.name}, {len(images)} images of {images.name}, {method}")))
    return path


def _write_file(path: Path, contents: bytes) -> None:
    """Write a file; that it cannot be written is said in one line."""
    with writing(path.parent):
        write_atomically(path, contents)


def _page(path: Path, template: str, **values: Any) -> None:
    html = _environment().get_template(template).render(**values, **_constants())
    _write_file(path, html.encode("utf-8", "replace"))


@lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("attribkit.features"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@lru_cache(maxsize=1)
def _constants() -> dict[str, Any]:
    folder = importlib.resources.files("attribkit.features") / "templates"
    style, script = ((folder / name).read_text(encoding="utf-8") for name in ("features.css", "features.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    return {"style": Markup(style), "script": Markup(script), "script_hash": f"sha256-{digest}"}
