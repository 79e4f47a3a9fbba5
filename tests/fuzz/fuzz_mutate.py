"""Changing a file at random: its bytes, and what its format says of them."""

from __future__ import annotations

import copy
import json
import random
import struct
import zlib
from typing import Any

NUMBERS = (0, 1, -1, 2**7, 2**8 - 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**62, 2**63 - 1, 2**64 - 1)
JSON_VALUES = (None, True, -1, 0, 2**31, 2**63, 2**64, 10**40, 1.5, float("inf"), float("nan"), "", "\u0000", "../x",
               "a\nb", "x" * 3000, [], [[]], {}, {"": {}}, [0] * 50, [-1], "F32", "I64", "F8_E4M3", "BOOL")  # fmt: skip


def mutated(data: bytes, others: list[bytes], kind: str, draw: random.Random) -> bytes:
    """Return ``data`` changed once or a few times.

    Parameters
    ----------
    data
        A file.
    others
        More of its kind, to take pieces from.
    kind
        See `attribkit`'s ``tests/fuzz/fuzz_targets.py``.
    draw
        Where chance comes from.
    """
    own = {"safetensors": _safetensors, "json": _json_text, "sqlite": _sqlite, "image": _chunks}.get(kind)
    for _ in range(draw.choice((1, 1, 1, 2, 3, 6))):
        data = own(data, draw) if own is not None and draw.random() < 0.6 else _bytes(data, others, draw)
    return data[: 2**20]


def _bytes(data: bytes, others: list[bytes], draw: random.Random) -> bytes:
    """Flip, cut, repeat, insert, splice, or write a number that is often a limit."""
    if not data:
        return draw.randbytes(draw.randrange(40))
    changed = bytearray(data)
    start = draw.randrange(len(changed)) if draw.random() < 0.6 else draw.randrange(min(len(changed), 128))
    length = draw.choice((1, 2, 4, 8, 16, 64, 512))
    what = draw.randrange(7)
    if what == 0:
        for _ in range(draw.randrange(1, 9)):
            changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    elif what == 1:
        del changed[start:]
    elif what == 2:
        del changed[start : start + length]
    elif what == 3:
        changed[start:start] = changed[start : start + length] * draw.randrange(1, 9)
    elif what == 4:
        changed[start : start + length] = draw.randbytes(length)
    elif what == 5:
        other = draw.choice(others)
        begin = draw.randrange(len(other) + 1)
        changed[start : start + length] = other[begin : begin + length]
    else:
        width, order = draw.choice((1, 2, 4, 8)), draw.choice(("little", "big"))
        changed[start : start + width] = (draw.choice(NUMBERS) % 256**width).to_bytes(width, order)  # type: ignore[arg-type]
    return bytes(changed)


def _safetensors(data: bytes, draw: random.Random) -> bytes:
    """Change the header's JSON, the JSON within its metadata, or the length it claims."""
    if len(data) < 8:
        return data
    (length,) = struct.unpack("<Q", data[:8])
    if draw.random() < 0.1:
        return (
            struct.pack("<Q", draw.choice((*(n % 2**64 for n in NUMBERS), (length + draw.randrange(-9, 9)) % 2**64)))
            + data[8:]
        )
    try:
        header = json.loads(data[8 : 8 + length])
    except (ValueError, RecursionError):
        return data
    about = header.get("__metadata__") if isinstance(header, dict) else None
    if isinstance(about, dict) and isinstance(about.get("attribkit"), str) and draw.random() < 0.6:
        about["attribkit"] = _json_text(about["attribkit"].encode("utf-8", "replace"), draw).decode("utf-8", "replace")
    else:
        header = _json(header, draw)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def _json_text(data: bytes, draw: random.Random) -> bytes:
    if draw.random() < 0.03:
        return b"[" * 100_000 if draw.random() < 0.5 else b'{"a":' * 50_000 + b"1" + b"}" * 50_000
    try:
        return json.dumps(_json(json.loads(data), draw)).encode()
    except (ValueError, RecursionError):
        return data


def _json(value: object, draw: random.Random) -> object:
    """Return JSON in which one value, somewhere, is another, missing, twice there, or moved under another name."""
    places: list[tuple[Any, Any]] = []  # what holds a value, and under which key

    def visit(inside: object) -> None:
        keys = inside if isinstance(inside, dict) else range(len(inside)) if isinstance(inside, list) else ()
        for key in keys:
            places.append((inside, key))
            visit(inside[key])  # type: ignore[index]

    visit(value)
    if not places:
        return copy.deepcopy(draw.choice(JSON_VALUES))
    holder, key = draw.choice(places)
    old = holder[key]

    def change(new: object) -> None:
        holder[key] = new

    what = draw.randrange(6)
    if what == 0:
        del holder[key]
    elif what == 1:
        change(copy.deepcopy(_found(draw.choice(places)) if draw.random() < 0.5 else [old, old]))
    elif what == 2 and isinstance(old, int):
        change(old + draw.choice((-1, 1, 7, 1000, -(2**40))))
    elif what == 3 and isinstance(old, str):
        change(old + draw.choice(("x", "/../..", "\n", "\ud800", "<script>")))
    else:
        change(copy.deepcopy(draw.choice(JSON_VALUES)))
    return value


def _found(place: tuple[Any, Any]) -> object:
    return place[0][place[1]]


def _sqlite(data: bytes, draw: random.Random) -> bytes:
    """Change a page's header, a pointer between cells or pages, or a text: SQLite has no checksums."""
    changed = bytearray(data)
    pages = max(1, len(changed) // 4096)
    page = draw.randrange(pages) * 4096
    what = draw.randrange(5)
    if what == 0:  # the header of a page: kind, free blocks, cells, right-most child
        at = page + (100 if page == 0 else 0) + draw.randrange(12)
        changed[at : at + 1] = bytes([draw.choice((0, 2, 5, 10, 13, draw.randrange(256)))])
    elif what == 1:  # one page in another's place, so that a tree's branches meet
        other = draw.randrange(pages) * 4096
        changed[page : page + 4096] = changed[other : other + 4096]
    elif what == 2:  # a pointer to a page
        at = page + draw.randrange(0, 4092)
        changed[at : at + 4] = struct.pack(">I", draw.randrange(pages + 2))
    elif what == 3:  # two cells in each other's place
        at, to = (page + 8 + 2 * draw.randrange(20) for _ in range(2))
        changed[at : at + 2], changed[to : to + 2] = changed[to : to + 2], changed[at : at + 2]
    else:
        for old, new in draw.sample(TEXTS, 3):
            if old in changed:
                at = changed.index(old)
                changed[at : at + len(new)] = new
                break
    return bytes(changed[: max(len(data), 100)])


TEXTS = [
    (b"00000000.safetensors", b"../../00.safetensors"),
    (b"done", b"gone"),
    (b"failed", b"done\0\0"),
    (b"attribkit store 1", b"attribkit store 9"),
    (b"INTEGER", b"BLOB   "),
    (b"CREATE TABLE", b"CREATE VIEW "),
    (b"results", b"resultz"),
    (b"methods", b"nethods"),
    (b'{"', b'["'),
    (b"photos/", b"\xff\xfe\x00tos/"),
]


def _chunks(data: bytes, draw: random.Random) -> bytes:
    """Change a PNG's chunk and its checksum with it, so that the decoder looks at it; of others, bytes."""
    if not data.startswith(b"\x89PNG"):
        return _bytes(data, [data], draw)
    parts, at = [], 8
    while at + 12 <= len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        if at + 12 + length > len(data):
            break
        parts.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    if not parts:
        return data
    number = draw.randrange(len(parts))
    kind, body = parts[number]
    what = draw.randrange(5)
    if what == 0 and body:
        parts[number] = (kind, _bytes(body, [body], draw))
    elif what == 1:
        parts.insert(number, parts[draw.randrange(len(parts))])
    elif what == 2:
        bomb = zlib.compress(bytes(draw.choice((10**6, 10**7))))
        parts.insert(
            1, draw.choice(((b"zTXt", b"a\0\0" + bomb), (b"iCCP", b"a\0\0" + bomb), (b"iTXt", b"a\0\1\0\0\0" + bomb)))
        )
    elif what == 3 and kind == b"IHDR" and len(body) == 13:
        sides = [draw.choice((0, 1, 2, 10, 9000, 65535, 2**31 - 1)) for _ in range(2)]
        parts[number] = (
            kind,
            struct.pack(">II", *sides)
            + bytes([*draw.choice(((8, 2), (16, 0), (1, 3), (8, 6))), 0, 0, draw.randrange(2)]),
        )
    else:
        del parts[number]
    return data[:8] + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts
    )
