"""Stores: read as a sequence, while they grow, and when something is wrong with them."""

import pickle
import random
import sqlite3
import subprocess
import sys
import threading
import types

import pytest
import torch
from store_helpers import METHODS, begin, finish, maps, whole

import attribkit as ak
from attribkit.store import StoreError, open_store
from attribkit.store.index import Index, index_path
from attribkit.store.layout import SHARDS, TABLES, Place, rank_file
from attribkit.store.lock import Lock
from attribkit.store.records import read_target, write_target


def edited(folder, *statements):
    connection = sqlite3.connect(index_path(folder))
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


def test_a_store_is_a_sequence_of_records(tmp_path):
    store = ak.open_store(whole(tmp_path))
    assert len(store) == store.expected == 14
    assert store.complete
    records = list(store)
    assert [record.image for record in records] == [f"photos/{i}.png" for i in range(7) for _ in METHODS]
    assert [record.method for record in records] == [*METHODS] * 7
    for record in records:
        if record.position == 3:
            assert (record.status, record.error, record.values) == ("failed", "is damaged", None)
            continue
        assert (record.status, record.error, record.target) == ("done", None, 4)
        assert record.score == record.position / 3
        assert torch.equal(record.values, maps(record.position, record.method))
    assert store[5] == records[5]
    assert store[-1] == records[-1]
    for part in (slice(2, 9, 3), slice(None, None, -2), slice(-3, None), slice(5, 2), slice(40, 50)):
        assert store[part] == records[part]
    assert records[4] in store
    with pytest.raises(IndexError, match="record 14 is out of range: 14 are finished"):
        store[14]
    assert store.counts() == (6, 1)
    assert [record.position for record in store.failures()] == [3, 3]
    assert [record.position for record in store.of_images(2, 2)] == [2, 2, 3, 3]
    assert repr(store) == f"Store({str(tmp_path)!r}, 14 of 14 records)"


def test_a_store_is_read_while_it_grows_and_while_it_is_written(tmp_path):
    index = begin(tmp_path)
    store = open_store(tmp_path)
    assert list(store) == []
    assert not store.complete
    for number, batch in enumerate(index.batches([2, 0, 3, 1])):  # as several processes finish them
        finish(tmp_path, index, batch)
        found = list(store)
        assert len(found) == len(store) == [4, 8, 10, 14][number]
        assert [store[i] for i in range(len(store))] == found
        assert found == sorted(found, key=lambda r: (r.position, METHODS.index(r.method)))
        for record in found:
            if record.status == "done":
                assert torch.equal(record.values, maps(record.position, record.method))
    index.connection.execute("BEGIN IMMEDIATE")  # someone is in the midst of a transaction
    assert len(list(store)) == 14
    index.connection.execute("ROLLBACK")
    index.close()


def test_pandas(tmp_path, monkeypatch):
    store = open_store(whole(tmp_path))
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(StoreError, match="needs pandas"):
        store.to_pandas()
    tables = types.SimpleNamespace(
        DataFrame=lambda rows, columns: [dict(zip(columns, row, strict=True)) for row in rows]
    )
    monkeypatch.setitem(sys.modules, "pandas", tables)
    rows = store.to_pandas()
    assert len(rows) == 14
    assert rows[1]["image"] == "photos/0.png"
    assert rows[6]["error"] == "is damaged"


def test_it_goes_into_other_threads_and_processes(tmp_path):
    store = open_store(whole(tmp_path))
    found = []
    threads = [threading.Thread(target=lambda: found.append(list(store))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(records) for records in found] == [14] * 3
    again = pickle.loads(pickle.dumps(store))
    assert [record.image for record in again] == [record.image for record in store]


def test_opening_a_store_loads_no_more_than_it_must(tmp_path):
    whole(tmp_path)
    code = (
        "import sys, attribkit as ak; s = ak.open_store(sys.argv[1]); assert len(list(s)) == 14;"
        "print([m for m in ('timm', 'torchvision', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_names_that_are_no_text_and_targets_that_are_units(tmp_path):
    names = ["a\udcff.png", "naïve 猫.png", "line\nbreak.png", "../../etc/passwd.png"]
    index = Index(index_path(tmp_path), ["gradient"])
    index.begin({"run": {"methods": {"gradient": {}}}}, [Place(name, "x.tar", 7, 9) for name in names], 3)
    found = [place for batch in index.batches(index.pending()) for place in batch.places]
    index.close()
    assert [place.image for place in found] == names
    assert {place[1:] for place in found} == {("x.tar", 7, 9, None)}
    for target in (None, 3, ak.Unit("conv5", 12), ak.Unit("x", 0, (1, 2), "NCHW"), ak.Unit("x", 0, 7, "NTC")):
        assert read_target(write_target(target)) == target
    for wrong in ("[1", '"a"', "{}", '{"layer": "", "channel": 1, "position": "max", "layout": null}', "[" * 100_000):
        with pytest.raises(StoreError, match="where a target belongs"):
            read_target(wrong)


# --- writing


def test_a_list_may_grow_and_its_batches_stay(tmp_path):
    index = begin(tmp_path, count=5, size=2)
    assert [batch.first for batch in index.batches(index.pending())] == [0, 2, 4]
    again = (Place(f"photos/{i}.png") for i in range(8))
    assert index.begin({"run": {}}, again, 2) == 3
    batches = list(index.batches(index.pending()))
    assert [(batch.first, len(batch.places)) for batch in batches] == [(0, 2), (2, 2), (4, 1), (5, 2), (7, 1)]
    assert index.note("run")["methods"]  # the first note stays
    index.close()


def test_ranks_are_joined_and_joining_twice_changes_nothing(tmp_path):
    index = begin(tmp_path)
    other = Index.of_rank(rank_file(tmp_path, 1), METHODS)
    for number, batch in enumerate(index.batches(index.pending())):
        finish(tmp_path, index, batch, into=other if number % 2 else index)
    other.close()
    assert len(open_store(tmp_path)) == 8
    assert index.merge(rank_file(tmp_path, 1)) == 2
    assert index.merge(rank_file(tmp_path, 1)) == 0
    index.close()
    whole(tmp_path / "one")
    key = [(r.image, r.method, r.score, r.status, r.shard, r.offset) for r in open_store(tmp_path)]
    assert key == [(r.image, r.method, r.score, r.status, r.shard, r.offset) for r in open_store(tmp_path / "one")]


@pytest.mark.parametrize("harm", ["cut", "gone", "zeroed"])
def test_batches_whose_shard_is_lost_are_taken_back(tmp_path, harm):
    whole(tmp_path)
    shard = sorted((tmp_path / SHARDS).iterdir())[-1]
    contents = shard.read_bytes()
    if harm == "gone":
        shard.unlink()
    else:
        shard.write_bytes(contents[:-50] + (b"\0" * 50 if harm == "zeroed" else b""))
    index = Index(index_path(tmp_path), METHODS)
    assert index.check_shards(tmp_path) == [3]
    assert index.pending() == [3]
    assert len(open_store(tmp_path)) == 12
    for batch in index.batches(index.pending()):
        finish(tmp_path, index, batch)
    index.close()
    assert shard.read_bytes() == contents
    assert len(open_store(tmp_path)) == 14


def test_half_a_transaction_is_undone_by_the_reader(tmp_path):
    whole(tmp_path)
    code = (
        "import os, sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None);"
        "c.execute('PRAGMA cache_size = 1'); c.execute('PRAGMA cache_spill = 1'); c.execute('BEGIN');"
        "c.execute('DELETE FROM results');"
        "c.executemany('INSERT INTO meta VALUES (?, ?)', [(str(i), 'x' * 4000) for i in range(300)]); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(index_path(tmp_path))], check=False).returncode == 9
    assert (tmp_path / "index.sqlite-journal").stat().st_size > 0
    assert len(list(open_store(tmp_path))) == 14


def test_one_run_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr("attribkit.store.lock.PATIENCE", 0.1)
    code = (
        "import sys, pathlib, time; from attribkit.store.lock import Lock\n"
        "with Lock(pathlib.Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with (
            pytest.raises(StoreError, match=f"is being written by another run .process {other.pid} on"),
            Lock(tmp_path),
        ):
            pass
        other.kill()
    with Lock(tmp_path):  # the system let it go
        pass


# --- what comes from elsewhere is not trusted


def test_there_is_no_store(tmp_path):
    with pytest.raises(StoreError, match="there is no such folder"):
        open_store(tmp_path / "no")
    with pytest.raises(StoreError, match="holds no store"):
        open_store(tmp_path)
    index_path(tmp_path).write_bytes(b"SQLite format 3\0" + b"\1" * 5000)
    with pytest.raises(StoreError, match="cannot be opened"):
        open_store(tmp_path)
    index_path(tmp_path).write_bytes(b"")
    with pytest.raises(StoreError, match="has no table 'meta'"):
        open_store(tmp_path)


HARMS = {
    "no table": (["DROP TABLE images"], "has no table 'images'"),
    "a view that never ends": (
        ["DROP TABLE results", "CREATE VIEW results AS WITH RECURSIVE n(id) AS (SELECT 1 UNION ALL SELECT id FROM n)"
         " SELECT * FROM n"],
        "has no table 'results'",
    ),
    "other columns": (["ALTER TABLE images ADD COLUMN more"], "has other columns"),
    "a computed column": (
        ["ALTER TABLE images DROP COLUMN problem",
         "ALTER TABLE images ADD COLUMN problem GENERATED ALWAYS AS (zeroblob(1000000000))"],
        "has other columns",
    ),
    "another format": (["UPDATE meta SET value = '\"attribkit store 2\"' WHERE key = 'format'"], "is of the format"),
    "no JSON": (["UPDATE meta SET value = '{' WHERE key = 'run'"], "its note 'run' is not understood"),
    "nothing said": (["DELETE FROM meta WHERE key = 'run'"], "does not say what was run"),
}  # fmt: skip


@pytest.mark.parametrize("harm", HARMS)
def test_an_index_that_is_none(tmp_path, harm):
    statements, words = HARMS[harm]
    edited(whole(tmp_path), *statements)
    with pytest.raises(StoreError, match=words):
        open_store(tmp_path)


RECORDS = {
    "shard = '../../secret.safetensors'": "no name of a shard",
    "shard = '/etc/passwd'": "no name of a shard",
    "shard = '00000009.safetensors'": "the shard is missing",
    "offset = 99": "has 2 rows, and none of number 99",
    "offset = -1": "its index is damaged",
    "offset = 'x'": "its index is damaged",
    "part = 1": "holds no 'gradient/values.1'",
    "status = 'odd'": "its index is damaged",
    "method = 'other'": "holds no 'other/values'",
    "method = x'00'": "its index is damaged",
    "target = 'x'": "where a target belongs",
    "target = zeroblob(100000000)": "cannot be read|its index is damaged",
    "score = 'x'": "its index is damaged",
    "scale = 9e999": "its index is damaged",
}


@pytest.mark.parametrize("harm", RECORDS)
def test_a_record_that_is_none(tmp_path, harm):
    edited(whole(tmp_path), f"UPDATE results SET {harm} WHERE id = 0")
    with pytest.raises(StoreError, match=RECORDS[harm]):
        assert open_store(tmp_path)[0].values is not None


def test_a_shard_that_is_a_link(tmp_path):
    whole(tmp_path / "store")
    shard = tmp_path / "store" / SHARDS / "00000000.safetensors"
    shard.rename(tmp_path / "elsewhere")
    shard.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="is a link"):
        assert open_store(tmp_path / "store")[0].values is not None


def test_the_tables_are_those_that_are_documented(tmp_path):
    whole(tmp_path)
    connection = sqlite3.connect(index_path(tmp_path))
    kinds = dict(connection.execute("SELECT name, type FROM sqlite_master WHERE type IN ('table', 'view')"))
    rows = connection.execute(
        "SELECT image, target, score, method, shard, offset, status, error FROM records"
    ).fetchall()
    connection.close()
    assert kinds == {**dict.fromkeys(TABLES, "table"), "records": "view"}
    assert rows[0] == ("photos/0.png", "4", 0.0, "gradient", "00000000.safetensors", 0, "done", None)


def mutated(data, draw):
    """Return bytes with some changed, cut off, inserted or copied to elsewhere."""
    data = bytearray(data)
    start, length = draw.randrange(len(data)), draw.randrange(1, 600)
    kind = draw.randrange(4)
    if kind == 0:
        for _ in range(draw.randrange(1, 40)):
            data[draw.randrange(min(len(data), 4096))] = draw.randrange(256)
    elif kind == 1:
        del data[start:]
    elif kind == 2:
        data[start : start + length] = draw.randbytes(draw.randrange(600))
    else:
        other = draw.randrange(len(data))
        data[start : start + length] = data[other : other + length]
    return bytes(data)


@pytest.mark.parametrize("seed", range(4))
def test_damage_anywhere_is_a_store_error(tmp_path, seed):
    index = index_path(whole(tmp_path))
    shard = tmp_path / SHARDS / "00000000.safetensors"
    contents = {path: path.read_bytes() for path in (index, shard)}
    draw = random.Random(seed)
    outcomes = set()
    for _ in range(60):
        for path, data in contents.items():
            path.write_bytes(mutated(data, draw) if path == draw.choice([index, index, shard]) else data)
        try:
            store = open_store(tmp_path)
            for record in store:
                _ = record.values, record.extras
            _ = store[0], store[2:5], store.counts(), list(store.failures()), store.reasons(), store.place(0)
            _ = store.seconds(0), list(store.names()), repr(store)
            outcomes.add(True)
        except (StoreError, IndexError) as error:
            outcomes.add(type(error))
    assert {True, StoreError} <= outcomes
