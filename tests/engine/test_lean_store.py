"""What a pass keeps lies together in memory that is taken before the activations'."""

import gc
import threading
import weakref

import pytest
import timm
import torch

import attribkit as ak
from attribkit.engine.lean import passes, store

pytestmark = pytest.mark.usefixtures("one_thread")
SIZE = torch.Size([100])


@pytest.fixture
def maps(monkeypatch):
    """The sizes of the memory maps taken, also for what is small."""
    taken, mapped = [], store.mapped
    monkeypatch.setattr(store, "_SMALL", 16)
    monkeypatch.setattr(store, "mapped", lambda size, **how: taken.append(size) or mapped(size, **how))
    return taken


def test_what_is_kept_in_a_room_lies_apart(maps):
    kinds = [torch.uint8, torch.int16, torch.int32, torch.uint8]
    with store.room(4096) as asked:
        found = [store.kept(SIZE, dtype) for dtype in kinds]
        assert asked() == sum(-(-100 * dtype.itemsize // 64) * 64 for dtype in kinds)
    for number, tensor in enumerate(found):
        assert (tensor.shape, tensor.dtype) == (SIZE, kinds[number])
        assert tensor.data_ptr() % 64 == 0
        tensor.fill_(number + 1)
        assert tensor._version == 1  # not one that all of them share
    assert [tensor.unique().tolist() for tensor in found] == [[1], [2], [3], [4]]
    assert not maps


def test_what_finds_no_place_has_a_map_of_its_own(maps):
    with store.room(200) as asked:
        found = [store.kept(SIZE, torch.uint8) for _ in range(3)]
        small = store.kept(torch.Size([15]), torch.uint8)
        assert asked() == 3 * 128
    assert maps == [100, 100]
    assert len({tensor.data_ptr() for tensor in (*found, small)}) == 4


def fail_in_a_room():
    with store.room(1024) as asked:
        store.kept(SIZE, torch.int32)
        assert asked() == 448
        raise ZeroDivisionError


def test_a_room_ends_where_it_does(maps):
    with store.room(1024) as outer:
        store.kept(SIZE, torch.uint8)
        with pytest.raises(ZeroDivisionError):
            fail_in_a_room()
        assert outer() == 128
        thread = threading.Thread(target=lambda: store.kept(SIZE, torch.int16))
        thread.start()
        thread.join()
        assert (outer(), maps) == (128, [200])
    store.kept(SIZE, torch.uint8)
    assert maps == [200, 100]


def test_the_memory_goes_with_the_last_of_what_is_kept():
    with store.room(1 << 20):
        found = store.kept(torch.Size([1 << 19]), torch.uint8)
        room = weakref.ref(store._room.left)
    gc.collect()
    found.fill_(3)
    assert found.sum() == 3 << 19
    assert room() is None  # what is left is handed back with the rest, not kept for the next pass
    assert store._room.left is None


@pytest.mark.parametrize("method", ["gradient", "guided_backprop", "deconvnet"])
def test_passes_made_again_keep_all_in_one_room(maps, method):
    model = timm.create_model("resnet18", num_classes=5).eval()
    x = torch.rand(2, 3, 64, 64)
    found = [ak.attribute(model, x, method, 1).values for _ in range(3)]
    (known,) = passes._passes[model].cases.values()
    assert known.replay.room > 0
    maps.clear()
    found += [ak.attribute(model, x, method, 1).values for _ in range(2)]
    assert not maps
    assert all(torch.equal(each, found[0]) for each in found)
    assert found[0].any()
