"""Readers of files that anyone may have made: the kept corpus, a short fuzzing run, and attacks one by one."""

import gzip
import io
import json
import os
import resource
import sqlite3
import struct
import subprocess
import sys
import threading
import time
import zipfile
import zlib
from pathlib import Path

import pytest
import torch
from fuzz_targets import ALLOWED, CORPUS, TARGETS, attempt, seeds
from safetensors.torch import save

import attribkit as ak
from attribkit.datasets._idx import read_idx
from attribkit.errors import CheckpointError, ImageError
from attribkit.images import read_image
from attribkit.models.checkpoint import read_checkpoint
from attribkit.runs.reading import Opener
from attribkit.store import StoreError, open_store
from attribkit.store.folder import StoreFolder
from attribkit.store.index import Index, index_path
from attribkit.store.layout import SHARDS, Place
from attribkit.training.runs import load_run

INPUTS = 300
"""To each reader, the same ones every time; `make fuzz` goes on for as long as one likes."""


@pytest.mark.parametrize("name", TARGETS)
def test_the_kept_files_are_read_or_refused(name, tmp_path):
    files = seeds(name)
    outcomes = {}
    for number, (file, data) in enumerate(files.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        outcomes[file] = attempt(name, data, folder)
    assert "" in outcomes.values(), "not one sound file"
    assert all(not said for file, said in outcomes.items() if file == "whole")


def test_the_corpus_is_small():
    files = [path for path in CORPUS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 10**6
    assert {path.parent.name for path in files} == set(TARGETS)


@pytest.fixture(scope="module")
def fuzzed():
    command = [sys.executable, str(Path(__file__).with_name("run.py")), "--no-save", "--json", "--seed", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--inputs", str(INPUTS), "--seconds", "1800"], capture_output=True, text=True, env=environment
    )
    assert done.stdout, done.stderr
    return {found["target"]: found for found in map(json.loads, filter(None, done.stdout.splitlines()))}


@pytest.mark.parametrize("name", TARGETS)
def test_some_fuzzing_finds_nothing(name, fuzzed):
    assert fuzzed[name]["faults"] == []
    assert fuzzed[name]["inputs"] == INPUTS


def test_the_fuzzer_sees_faults(monkeypatch, tmp_path):
    import run

    def bad(data, folder):
        if len(data) % 2:
            raise KeyError("odd")

    monkeypatch.setitem(TARGETS, "labels", TARGETS["labels"]._replace(read=bad))
    found = run.fuzz_apart("labels", 1.0, 0, save=False)
    assert found["faults"]
    assert "KeyError: 'odd'" in found["faults"][0]
    monkeypatch.setitem(TARGETS, "labels", TARGETS["labels"]._replace(read=lambda data, folder: os.abort()))
    assert "Abort" in run.fuzz_apart("labels", 1.0, 0, save=False)["faults"][0]
    monkeypatch.setattr(run, "TIME", 0.2)
    monkeypatch.setitem(TARGETS, "labels", TARGETS["labels"]._replace(read=lambda data, folder: time.sleep(30)))
    assert "Timeout" in run.fuzz_apart("labels", 1.0, 0, save=False)["faults"][0]


@pytest.fixture
def store(tmp_path):
    (tmp_path / "s" / SHARDS).mkdir(parents=True)
    index_path(tmp_path / "s").write_bytes((CORPUS / "store_index" / "whole").read_bytes())
    shard = (CORPUS / "store_shard" / "whole").read_bytes()
    (tmp_path / "s" / SHARDS / "00000000.safetensors").write_bytes(shard)
    return tmp_path / "s"


def hot_journal(folder, name=None):
    """Leave half a transaction beside a store's index, as a killed process does; ``name`` is its super-journal."""
    path = index_path(folder)
    copy = path.with_name("copy.sqlite")
    copy.write_bytes(path.read_bytes())
    connection = sqlite3.connect(copy, isolation_level=None)
    connection.execute("PRAGMA cache_size = 1")
    connection.execute("BEGIN IMMEDIATE")
    rows = [(f"note {i}", "x" * 3000) for i in range(100)]
    connection.executemany("INSERT INTO meta VALUES (?, ?)", rows)
    journal = bytearray(copy.with_name("copy.sqlite-journal").read_bytes())
    path.write_bytes(copy.read_bytes())
    connection.execute("ROLLBACK")
    connection.close()
    copy.unlink()
    magic = bytes.fromhex("d9d505f920a163d7")
    assert journal[:8] == magic
    if name is not None:
        text = os.fsencode(name)
        page = 0x40000000 // 4096 + 1
        journal += struct.pack(">I", page) + text + struct.pack(">II", len(text), sum(text)) + magic
    path.with_name(f"{path.name}-journal").write_bytes(bytes(journal))


def test_a_journal_cannot_have_another_file_deleted(store, tmp_path):
    victim = tmp_path / "precious"
    victim.write_bytes(b"of the user's\0")
    whole = len(open_store(store))
    hot_journal(store, victim)
    with pytest.raises(StoreError, match="belongs to several databases"):
        open_store(store)
    assert victim.exists()
    hot_journal(store)  # without that name it is undone
    assert len(open_store(store)) == whole


def test_the_journal_would_have_worked(store, tmp_path):
    victim = tmp_path / "precious"
    victim.write_bytes(b"of the user's\0")
    hot_journal(store, victim)
    connection = sqlite3.connect(index_path(store))
    connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
    connection.close()
    assert not victim.exists()


@pytest.mark.parametrize("end", ["", "-journal", "-wal", "-shm"])
def test_links_beside_an_index_are_refused(store, tmp_path, end):
    victim = tmp_path / "precious"
    path = index_path(store).with_name(f"index.sqlite{end}")
    victim.write_bytes(path.read_bytes() if path.exists() else b"of the user's")
    before = victim.read_bytes()
    path.unlink(missing_ok=True)
    path.symlink_to(victim)
    with pytest.raises(StoreError, match="is a link"):
        open_store(store)
    with pytest.raises(StoreError, match="is a link"):
        Index(index_path(store), ("gradient",))
    assert victim.read_bytes() == before


@pytest.mark.parametrize("name", ["shards", "ranks", "index.sqlite", "lock"])
def test_a_run_does_not_write_through_links(tmp_path, name):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="is a link"):
        StoreFolder(tmp_path / "out")
    assert not (tmp_path / "elsewhere").exists()


def test_triggers_and_write_ahead_logs_are_refused(store):
    connection = sqlite3.connect(index_path(store))
    connection.execute("CREATE TRIGGER t AFTER INSERT ON results BEGIN DELETE FROM images; END")
    connection.commit()
    connection.close()
    with pytest.raises(StoreError, match="has a trigger"):
        open_store(store)
    with pytest.raises(StoreError, match="has a trigger"):
        Index(index_path(store), ("gradient", "lrp.flat"))
    data = bytearray(index_path(store).read_bytes())
    data[18:20] = b"\2\2"
    index_path(store).write_bytes(data)
    with pytest.raises(StoreError, match="written ahead"):
        open_store(store)


def root_page(path, table):
    connection = sqlite3.connect(path)
    (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)).fetchone()
    connection.close()
    return page


def interior(child, keys, leaf):
    """Return an inner page whose branches all lead to one page: of a table, or of an index, as ``leaf`` is."""
    if leaf[0] == 13:  # a table's, with keys alone
        kind, bodies = 5, [bytes([min(key, 127)]) for key in range(keys)]
    else:  # an index's, whose inner cells are as a leaf's
        at = struct.unpack(">H", leaf[8:10])[0]
        kind, bodies = 2, [bytes(leaf[at : at + 1 + leaf[at]])] * keys
    cells, pointers, start = b"", b"", 4096 - sum(4 + len(body) for body in bodies)
    for body in bodies:
        pointers += struct.pack(">H", start + len(cells))
        cells += struct.pack(">I", child) + body
    head = struct.pack(">BHHHBI", kind, 0, keys, start, 0, child)
    return (head + pointers).ljust(start, b"\0") + cells


@pytest.mark.parametrize("table", ["results_of_batches", "sqlite_autoindex_images_1", "results", "images"])
def test_a_tree_whose_branches_meet_has_an_end(store, table):
    """Twelve levels of a hundred branches each: counting its rows would take longer than there is time."""
    path = index_path(store)
    root = root_page(path, table)
    data = bytearray(path.read_bytes())
    pages, levels = len(data) // 4096, 12
    leaf = data[4096 * (root - 1) : 4096 * root]
    data[4096 * (root - 1) : 4096 * root] = interior(pages + 1, 100, leaf)
    for level in range(1, levels):
        data += interior(pages + level + 1, 100, leaf)
    data += leaf
    data[28:32] = struct.pack(">I", len(data) // 4096)
    path.write_bytes(data)
    began, refused = time.monotonic(), []
    found = open_store(store)
    for count in (len, lambda store: store.images, list, lambda store: list(store.names())):
        try:
            refused.append(not count(found))
        except StoreError as error:
            refused.append(str(error))
    said = "more steps than" if "_" in table else "out of order"
    assert any(said in str(each) for each in refused), refused
    with pytest.raises(StoreError, match="is damaged"):
        Index(path, ("gradient", "lrp.flat"))
    assert time.monotonic() - began < 60


def test_a_text_that_bites_its_tail_takes_no_memory(store):
    """A note claims 60 MB that one page in a circle makes up."""
    path = index_path(store)
    connection = sqlite3.connect(path)
    connection.execute("INSERT INTO meta VALUES ('n', ?)", ("x" * 60_000_000,))
    connection.commit()
    connection.close()
    data = path.read_bytes()
    page = next(page for page in range(1, 1000) if data[4096 * page + 4 : 4096 * page + 60] == b"x" * 56)
    data = bytearray(data[: 4096 * (page + 1)])
    data[4096 * page : 4096 * page + 4] = struct.pack(">I", page + 1)  # the one after it is it itself
    data[28:32] = struct.pack(">I", page + 1)
    path.write_bytes(data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(StoreError, match=r"too big|malformed|more than"):
        open_store(store).note("n")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024


def about(**changes):
    """Return the weights of a run, with another recipe."""
    data = (CORPUS / "run_weights" / "whole").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    said = json.loads(header["__metadata__"]["attribkit"])
    said["recipe"].update(changes)
    header["__metadata__"]["attribkit"] = json.dumps(said)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def test_a_runs_recipe_can_name_no_other_file(tmp_path):
    assert load_run(write(tmp_path / "w", about())).model is not None
    evil = tmp_path / "evil.pth"
    evil.write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "hacked").encode() + b"'\ntR.")
    for option in ("checkpoint_path", "pretrained", "pretrained_cfg_overlay"):
        recipe = about(model="resnet18", model_options={option: str(evil)})
        with pytest.raises(CheckpointError, match=f"has the option '{option}'"):
            load_run(write(tmp_path / "w", recipe))
    with pytest.raises(ak.errors.AttribkitError, match="unknown model"):
        load_run(write(tmp_path / "w", about(model="os:system")))
    assert not (tmp_path / "hacked").exists()


def test_a_runs_recipe_cannot_make_a_huge_network(tmp_path):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for recipe in (
        {"model_options": {"width": 3.0, "img_size": 64}},
        {"model": "vit_giant_patch14_224", "model_options": {}},
    ):
        with pytest.raises(ak.errors.AttribkitError, match="far larger"):
            load_run(write(tmp_path / "w", about(**recipe)))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600 * 1024


def write(path, data):
    path = path.with_suffix(".safetensors")
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("change", ["compressed", "longer"])
def test_torch_archives_take_no_more_than_they_hold(tmp_path, change):
    path = tmp_path / "w.pt"
    torch.save({"w": torch.arange(4.0)}, path)
    changed = io.BytesIO()
    packed = zipfile.ZIP_DEFLATED if change == "compressed" else zipfile.ZIP_STORED
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(changed, "w", packed) as new:
        for name in old.namelist():
            data = old.read(name)
            if change == "longer" and name.endswith("data.pkl"):
                data = data.replace(b"K\x04t", b"J\0\x10\0\0t").replace(b"K\x04\x85", b"J\0\x10\0\0\x85")
            new.writestr(name, data)
    path.write_bytes(changed.getvalue())
    with pytest.raises(CheckpointError, match="compressed" if change == "compressed" else "cannot be read"):
        read_checkpoint(path)


def test_weights_that_are_claimed_but_not_there(tmp_path):
    path = tmp_path / "w.pt"
    torch.save({"w": torch.zeros(4)}, path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"K\x04", b"J\0\0\0\x04"))
    with pytest.raises(CheckpointError):
        read_checkpoint(path)


@pytest.mark.parametrize("name", ["attribution", "mined", "run_state", "run_weights"])
def test_json_that_is_too_deep(tmp_path, name):
    data = save({"values": torch.zeros(1)}, {"attribkit": "[" * 200_000 + "]" * 200_000})
    assert attempt(name, data, tmp_path)


def test_json_of_boxes_that_is_too_deep(tmp_path):
    assert "is no JSON" in attempt("boxes", b"[" * 200_000, tmp_path)


def test_a_header_longer_than_the_file(tmp_path):
    for name in ("attribution", "mined", "run_state", "run_weights", "checkpoint_safetensors", "store_shard"):
        (tmp_path / name).mkdir()
        assert attempt(name, struct.pack("<Q", 2**62) + b"{}", tmp_path / name)


def test_idx_files_that_claim_too_much(tmp_path):
    claims = {
        b"\0\0\x08\x03" + struct.pack(">III", 2**32 - 1, 2**32 - 1, 2**32 - 1): "more than",
        b"\0\0\x08\x04" + struct.pack(">IIII", 2**31, 0, 2**31, 2**31): "without pixels",
        gzip.compress(b"\0\0\x08\x03" + struct.pack(">III", 60000, 1000, 28) + b"x"): "the file has",
    }
    for number, (data, said) in enumerate(claims.items()):
        path = tmp_path / str(number)
        path.write_bytes(data)
        with pytest.raises(ImageError, match=said):
            read_idx(path)


def png(width, height, *chunks):
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), *chunks, (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts
    )


def test_pngs_that_unpack_to_much_more(tmp_path):
    bomb = zlib.compress(bytes(200 * 2**20), 9)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pictures = {
        "sides": png(60000, 60000, (b"IDAT", zlib.compress(bytes(1000)))),
        "text": png(4, 4, (b"zTXt", b"a\0\0" + bomb), (b"IDAT", zlib.compress(bytes(52)))),
        "pixels": png(4, 4, (b"IDAT", bomb)),
    }
    refused = {}
    for name, data in pictures.items():
        (tmp_path / name).write_bytes(data)
        try:
            assert read_image(tmp_path / name).size == (4, 4)
        except ALLOWED as error:
            refused[name] = str(error)
    assert "decompression bomb" in refused["sides"]
    assert "text" in refused
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 1024  # of the bomb itself most


def test_a_tar_file_that_is_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.tar")
    place = Place("a.tar/x.png", str(tmp_path / "a.tar"), 512, 10)
    said = []

    def read():
        try:
            Opener().read(place)
        except ImageError as error:
            said.append(str(error))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(20)
    assert said == ["the tar file is a pipe, socket or device"]


@pytest.mark.parametrize("named", ["os:system", "zfnet_evil:factory", "timm/x:y", "run/folder", 7, None])
def test_a_store_that_names_a_model_of_code_is_not_obeyed(named):
    from attribkit.cli.report_store import _model_of

    with pytest.raises(StoreError, match="may run code"):
        _model_of({"model": named}, None, None, None)
    assert _model_of({"model": "timm/resnet18"}, "w.pt", None, None) == ("timm/resnet18", "w.pt")
    assert _model_of({"model": named}, None, "os:mine", None) == ("os:mine", None)
