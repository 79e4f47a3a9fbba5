"""Shards: safetensors files written whole or not at all, and read a row at a time without trusting them."""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from attribkit.store.errors import StoreError

__all__ = ["Shard", "Written", "checksum", "write_shard"]

MAX_HEADER = 16 * 2**20
"""A header is a few hundred bytes for each method: one that claims more than this is not ours."""

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class Written:
    """What the index notes of a shard: its length in bytes and its CRC-32."""

    size: int
    crc: int


def write_shard(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> Written:
    """Write a shard under a temporary name, bring it to the disk, and rename it.

    The new name need not be on the disk before the index notes it: a shard that a power loss took away is missed when
    the run goes on, and its batch is done again.

    Raises
    ------
    OSError
        The disk is full, or the folder cannot be written; nothing is left behind.
    """
    from safetensors.torch import save

    contents = save({name: tensor.contiguous() for name, tensor in tensors.items()}, dict(about))
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(contents)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return Written(len(contents), zlib.crc32(contents))


def checksum(path: Path) -> Written:
    """Return the length and CRC-32 of a file."""
    size = crc = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            size += len(block)
            crc = zlib.crc32(block, crc)
    return Written(size, crc)


class Shard:
    """A shard to read from.

    Only the header is read at first, and every number in it is checked against the file's length before anything is
    allocated by it. Rows are read, not mapped: a file that is cut off meanwhile is an error and not a crash.

    Parameters
    ----------
    path
        The file.

    Raises
    ------
    StoreError
        It is missing or no safetensors file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with open(path, "rb") as file:
                self.size = os.fstat(file.fileno()).st_size
                start = file.read(8)
                length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
                if not 2 <= length <= min(MAX_HEADER, self.size - 8):
                    raise StoreError(f"{path}: is cut off, or no safetensors file")
                header = json.loads(file.read(length).decode("utf-8"))
        except FileNotFoundError:
            raise StoreError(f"{path}: the shard is missing") from None
        except OSError as error:
            raise StoreError(f"{path}: cannot be read: {error.strerror or error}") from error
        except (ValueError, RecursionError) as error:
            if isinstance(error, StoreError):
                raise
            raise StoreError(f"{path}: is damaged: its header is no JSON") from error
        if not isinstance(header, dict):
            raise StoreError(f"{path}: is damaged: its header is no table")
        self._start = 8 + length
        self._entries = {name: entry for name, entry in header.items() if name != "__metadata__"}

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors in it."""
        return tuple(self._entries)

    def row(self, name: str, index: int) -> Tensor:
        """Return one row of a tensor.

        Raises
        ------
        StoreError
            There is no such tensor or row, or the file is damaged.
        """
        if name not in self._entries:
            raise StoreError(f"{self.path}: holds no {name!r}")
        dtype, shape, begin = self._entry(name)
        if not shape or not 0 <= index < shape[0]:
            raise StoreError(f"{self.path}: {name!r} has {shape[0] if shape else 0} rows, and none of number {index}")
        length = prod(shape[1:]) * dtype.itemsize
        try:
            with open(self.path, "rb") as file:
                file.seek(self._start + begin + index * length)
                data = file.read(length)
        except OSError as error:
            raise StoreError(f"{self.path}: cannot be read: {error.strerror or error}") from error
        if len(data) != length:
            raise StoreError(f"{self.path}: is cut off within {name!r}")
        return torch.frombuffer(bytearray(data), dtype=dtype).reshape(shape[1:])

    def _entry(self, name: str) -> tuple[torch.dtype, tuple[int, ...], int]:
        """Return a tensor's type, shape and first byte, checked against the file's length."""
        try:
            entry = self._entries[name]
            dtype, shape, (begin, end) = _DTYPES[entry["dtype"]], tuple(entry["shape"]), entry["data_offsets"]
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(f"{self.path}: is damaged: its entry of {name!r} is not understood") from error
        sizes = all(type(n) is int and 1 <= n <= self.size for n in shape) and len(shape) <= 8
        if not sizes or not all(type(n) is int and 0 <= n <= self.size for n in (begin, end)):
            raise StoreError(f"{self.path}: is damaged: the shape or place of {name!r} is out of range")
        if end - begin != prod(shape) * dtype.itemsize or self._start + end > self.size:
            raise StoreError(f"{self.path}: is cut off or damaged: {name!r} reaches beyond its end")
        return dtype, shape, begin
