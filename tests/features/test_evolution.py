import csv

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import attribkit as ak
from attribkit.errors import CheckpointError, InputError, InputTypeError, UnknownNameError
from attribkit.features import evolution, find_snapshots

pytestmark = pytest.mark.usefixtures("one_thread")


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)
    )


@pytest.fixture
def images():
    return torch.randn(7, 1, 14, 14, generator=torch.Generator().manual_seed(1))


def test_against_brute_force(images):
    snapshots = {4: network(2), 0: network(0), 2: network(1)}
    found = evolution(snapshots, images, "4", [3, 1], batch_size=3)
    assert found.epochs == (0, 2, 4)
    assert found.channels == (3, 1)
    for e, epoch in enumerate(found.epochs):
        with torch.no_grad():
            maps = snapshots[epoch][:5](images)
        for k, channel in enumerate(found.channels):
            flat = maps[:, channel].flatten()
            best = int(flat.argmax())
            size = maps[0, channel].numel()
            assert (found.image[e, k], found.position[e, k]) == divmod(best, size)
            assert found.activation[e, k] == pytest.approx(float(flat[best]), rel=1e-6)
            row, column = divmod(best % size, maps.shape[-1])
            unit = ak.Unit("4", channel, (row, column))
            one = images[[best // size]]
            expected = ak.attribute(snapshots[epoch], one, "deconvnet", unit).values[0].numpy()
            np.testing.assert_allclose(found.projections[e, k], expected, atol=1e-6)
            top, left, bottom, right = found.boxes[e, k]
            outside = expected.copy()
            outside[:, top:bottom, left:right] = 0
            assert not outside.any()
            # 3×3, a pool of 2, and 3×3 again: 8 pixels, each position 2 further
            assert (top, left, bottom, right) == (2 * row, 2 * column, 2 * row + 8, 2 * column + 8)


def test_jumps_and_when_a_map_settles(images):
    # a map that answers the mean brightness: its image is the brightest, or the darkest with the sign turned
    def weighing(value):
        model = nn.Sequential(nn.Conv2d(1, 1, 14, bias=False), nn.Identity())
        nn.init.constant_(model[0].weight, value)
        return model

    brightest, darkest = int(images.mean((1, 2, 3)).argmax()), int(images.mean((1, 2, 3)).argmin())
    snapshots = {1: weighing(1.0), 2: weighing(2.0), 5: weighing(-1.0), 9: weighing(-3.0)}
    found = evolution(snapshots, images, "0", [0], method="gradient")
    assert found.image[:, 0].tolist() == [brightest, brightest, darkest, darkest]
    assert found.jumps[:, 0].tolist() == [False, False, True, False]
    assert found.settled.tolist() == [5]
    steady = evolution({1: weighing(1.0), 2: weighing(2.0)}, images, "0", [0], method="gradient")
    assert steady.settled.tolist() == [1]


def test_the_first_wins_on_ties(images):
    found = evolution({0: network()}, images[[2, 2, 2, 2]], "4", [0, 1], batch_size=2)
    assert found.image.tolist() == [[0, 0]]


def test_files_fill_a_copy_of_the_model(images, tmp_path):
    for epoch in (0, 3):
        half = {k: v.half() for k, v in network(epoch).state_dict().items()}
        save_file(half, tmp_path / f"epoch-{epoch:03d}.safetensors")
    model = network(9)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = evolution(find_snapshots(tmp_path), images, "4", [0, 1], model=model)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    rounded = network(3)
    rounded.load_state_dict({k: v.half().float() for k, v in rounded.state_dict().items()})
    expected = evolution({3: rounded}, images, "4", [0, 1])
    np.testing.assert_array_equal(found.projections[1], expected.projections[0])
    np.testing.assert_array_equal(found.image[1], expected.image[0])


def test_finding_snapshots(tmp_path):
    folder = tmp_path / "run" / "snapshots"
    folder.mkdir(parents=True)
    for name in ("epoch-010.safetensors", "epoch-002.safetensors", "notes1.txt", "last.safetensors"):
        (folder / name).write_bytes(b"x")
    expected = {2: folder / "epoch-002.safetensors", 10: folder / "epoch-010.safetensors"}
    assert find_snapshots(tmp_path / "run") == find_snapshots(folder) == expected
    assert list(find_snapshots(list(expected.values())[::-1])) == [2, 10]
    with pytest.raises(InputError, match="both of epoch 2"):
        find_snapshots([folder, folder / "epoch-002.safetensors"])
    with pytest.raises(InputError, match="no number"):
        find_snapshots(folder / "last.safetensors")
    with pytest.raises(InputError, match="no such file"):
        find_snapshots(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds none"):
        find_snapshots(tmp_path / "empty")
    with pytest.raises(InputError, match="at least one"):
        find_snapshots([])


def test_the_table_and_the_figure(images, tmp_path):
    found = evolution({0: network(0), 5: network(1)}, images, "4", [0, 2])
    with open(found.to_csv(tmp_path / "e.csv"), newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    for row in rows:
        e, k = found.epochs.index(int(row["epoch"])), found.channels.index(int(row["channel"]))
        assert float(row["activation"]) == found.activation[e, k]
        assert row["image"] == found.ids[found.image[e, k]]
        assert int(row["position"]) == found.position[e, k]
        assert bool(int(row["jump"])) == found.jumps[e, k]
        assert [int(row[s]) for s in ("top", "left", "bottom", "right")] == found.boxes[e, k].tolist()
    figure = found.plot()
    assert len(figure.axes) == 4
    assert all(axes.images for axes in figure.axes)


def test_a_dead_map_says_so(images):
    model = network()
    with torch.no_grad():
        model[3].bias[1] = -100
    found = evolution({0: model}, images, "4", [1])
    assert found.activation[0, 0] == 0
    assert not found.projections.any()
    assert [text.get_text() for text in found.plot().axes[0].texts] == ["no activity"]


def test_nothing_is_left_behind(images):
    model, kept = network().train(), images.clone()
    evolution({0: model}, images, "4", [0])
    assert torch.equal(images, kept)
    assert all(m.training and not m._forward_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"snapshots": {}}, InputError, "empty"),
        ({"snapshots": [1]}, InputTypeError, "must map"),
        ({"snapshots": {"one": nn.Identity()}}, InputTypeError, "epoch"),
        ({"snapshots": {1: 7}}, InputTypeError, "model or a file"),
        ({"snapshots": {1: "nothing.safetensors"}}, InputError, "needs model="),
        ({"channels": []}, InputError, "at least one"),
        ({"channels": 3}, InputError, "sequence"),
        ({"channels": [4]}, InputError, "has 4 channels"),
        ({"layer": "9"}, UnknownNameError, "9"),
        ({"limit": 0}, InputError, "limit"),
        ({"source": "fashion-sample"}, InputError, "preprocessing"),
    ],
)
def test_bad_input_is_said_in_one_line(images, change, error, says):
    given = {"snapshots": {0: network()}, "source": images, "layer": "4", "channels": [0], **change}
    with pytest.raises(error, match=says) as caught:
        evolution(**given)
    assert "\n" not in str(caught.value)


def test_a_file_that_does_not_fit(images, tmp_path):
    save_file({"0.weight": torch.zeros(9, 1, 3, 3)}, tmp_path / "1.safetensors")
    with pytest.raises(CheckpointError):
        evolution({1: tmp_path / "1.safetensors"}, images, "4", [0], model=network())
