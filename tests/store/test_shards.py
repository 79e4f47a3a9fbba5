"""Shards: whole or not at all; what they claim is checked before it is believed."""

import errno
import json
import os
import struct

import pytest
import torch

from attribkit.store.errors import StoreError
from attribkit.store.shards import Shard, checksum, write_shard

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_are_read_as_they_were_written(tmp_path, dtype):
    values = (torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0)) * 9).to(dtype)
    path = tmp_path / "a.safetensors"
    written = write_shard(path, {"m/values": values, "m/extras.x": values[:, 0]}, {"about": "x"})
    assert checksum(path) == written
    shard = Shard(path)
    assert set(shard.names) == {"m/values", "m/extras.x"}
    for row in range(4):
        assert torch.equal(shard.row("m/values", row), values[row])
        assert torch.equal(shard.row("m/extras.x", row), values[row, 0])
    with pytest.raises(StoreError, match="has 4 rows, and none of number 4"):
        shard.row("m/values", 4)
    with pytest.raises(StoreError, match="holds no 'n'"):
        shard.row("n", 0)


@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch, where):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, where, full)
    with pytest.raises(OSError, match="No space left"):
        write_shard(tmp_path / "a.safetensors", {"x": torch.zeros(3)}, {})
    assert list(tmp_path.iterdir()) == []


def test_a_shard_cut_off_anywhere_is_an_error(tmp_path):
    path = tmp_path / "a.safetensors"
    write_shard(path, {"x": torch.zeros(3, 5)}, {})
    contents = path.read_bytes()
    for length in range(0, len(contents), 7):
        path.write_bytes(contents[:length])
        with pytest.raises(StoreError):
            Shard(path).row("x", 2)
    path.write_bytes(contents)
    shard = Shard(path)
    path.write_bytes(contents[:-30])  # after its header was read
    with pytest.raises(StoreError, match="is cut off within 'x'"):
        shard.row("x", 2)


def header(text, length=None):
    data = text.encode() if isinstance(text, str) else json.dumps(text).encode()
    return struct.pack("<Q", len(data) if length is None else length) + data + b"\0" * 64


def entry(**changes):
    return header({"x": {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64], **changes}})


CLAIMS = {
    "a header of 16 GiB": header("{}", 2**34),
    "a header of 2^63": header("{}", 2**63),
    "no JSON": header("{{{{"),
    "deep JSON": header("[" * 100_000),
    "a list": header("[1]"),
    "no entry": header({"x": 3}),
    "an unknown type": entry(dtype="F4"),
    "a list for a type": entry(dtype=["F32"]),
    "a shape of text": entry(shape="44"),
    "a negative side": entry(shape=[-4, -4]),
    "no side": entry(shape=[]),
    "a side of zero": entry(shape=[4, 0, 10**9], data_offsets=[0, 0]),
    "a huge side": entry(shape=[4, 10**12]),
    "a huge row": entry(shape=[1, 2**40], data_offsets=[0, 2**42]),
    "a truth value": entry(shape=[True, 16]),
    "a fraction": entry(shape=[4.0, 4]),
    "beyond the end": entry(data_offsets=[32, 96]),
    "before the start": entry(data_offsets=[-64, 0]),
    "three offsets": entry(data_offsets=[0, 64, 64]),
    "too few bytes": entry(data_offsets=[0, 32]),
    "many dimensions": entry(shape=[1] * 40, data_offsets=[0, 4]),
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_what_a_header_claims_is_checked(tmp_path, claim):
    path = tmp_path / "a.safetensors"
    path.write_bytes(CLAIMS[claim])
    with pytest.raises(StoreError, match=r"a\.safetensors"):
        Shard(path).row("x", 0)
