"""Checkpoints: what is read, what is refused, and that nothing in a file is executed."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from attribkit.errors import CheckpointError
from attribkit.models.checkpoint import load_weights, misfits, other_classes, read_checkpoint, without_prefixes


class Net(nn.Module):
    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 3)
        self.bn = nn.BatchNorm2d(2)
        self.fc = nn.Linear(2, classes)
        self.register_buffer("index", torch.arange(3), persistent=False)


class Evil:
    """Unpickled without care, this would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.path), "w"))


def refusal(path: object) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def written(content: Any, path: Path, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def same(state: OrderedDict[str, torch.Tensor], model: nn.Module) -> bool:
    expected = model.state_dict()
    return state.keys() == expected.keys() and all(torch.equal(state[key], expected[key]) for key in expected)


def test_pickle_and_safetensors(tmp_path: Path) -> None:
    net = Net()
    assert same(read_checkpoint(written(net.state_dict(), tmp_path / "a.pth")), net)
    assert same(read_checkpoint(str(tmp_path / "a.pth")), net)
    old = written(net.state_dict(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert same(read_checkpoint(old), net)
    save_file(net.state_dict(), tmp_path / "a.safetensors")
    assert same(read_checkpoint(tmp_path / "a.safetensors"), net)


def test_wrappers(tmp_path: Path) -> None:
    net, average = Net(), Net()
    state, averaged = net.state_dict(), average.state_dict()
    for index, content in enumerate(
        [
            {"state_dict": state, "epoch": 3, "best": torch.tensor(0.5)},
            {"model": state, "optimizer": {"state": {}, "param_groups": []}},
            {"model": {"state_dict": state}},
            {"model_state_dict": state, "model_ema": None, "state_dict_ema": {}},
        ]
    ):
        assert same(read_checkpoint(written(content, tmp_path / f"{index}.pth")), net), index
    both = {"model": state, "model_ema": {"n_averaged": torch.tensor(1), **averaged}}
    assert same(read_checkpoint(written(both, tmp_path / "ema.pth")), average)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model."])
def test_prefixes_come_off(prefix: str) -> None:
    net = Net()
    state = OrderedDict((prefix + key, value) for key, value in net.state_dict().items())
    assert same(without_prefixes(state, net), net)
    assert next(iter(state)).startswith(prefix)  # the given one is as it was


def test_a_prefix_that_is_the_models_own_stays() -> None:
    net = nn.ModuleDict({"model": Net()})
    assert same(without_prefixes(net.state_dict(), net), net)


def test_format_versions_are_kept(tmp_path: Path) -> None:
    state = read_checkpoint(written(Net().state_dict(), tmp_path / "a.pth"))
    assert state._metadata["bn"]["version"] == 2


def test_load_weights_copies_and_casts() -> None:
    net, other = Net(), Net()
    half = OrderedDict(
        (key, value.half() if value.is_floating_point() else value) for key, value in other.state_dict().items()
    )
    load_weights(net, half, checkpoint="c", name="n")
    assert net.fc.weight.dtype == torch.float32
    assert torch.equal(net.fc.weight, other.fc.weight.half().float())


def test_counters_may_miss_and_computed_buffers_may_be_there() -> None:
    net, other = Net(), Net()
    state = other.state_dict()
    del state["bn.num_batches_tracked"]
    state["index"] = torch.arange(3)
    load_weights(net, state, checkpoint="c", name="n")
    assert torch.equal(net.conv.weight, other.conv.weight)


def test_misfits_are_named_and_the_model_stays() -> None:
    net = Net()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    state = Net(5).state_dict()
    del state["conv.bias"]
    state["head.weight"] = torch.zeros(2)
    state["conv.weight"] = torch.zeros(2, 3, 5, 5)
    with pytest.raises(CheckpointError) as caught:
        load_weights(net, state, checkpoint="my.pth", name="timm/net")
    assert str(caught.value) == (
        "checkpoint my.pth does not fit timm/net: 1 missing: conv.bias; 1 unexpected: head.weight;"
        " 3 of another shape: conv.weight has shape [2, 3, 5, 5] where the model has [2, 3, 3, 3],"
        " fc.weight has shape [5, 2] where the model has [4, 2], fc.bias has shape [5] where the model has [4]"
    )
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_no_more_than_three_are_named() -> None:
    wrong = misfits(Net(), OrderedDict((f"x{index}", torch.zeros(1)) for index in range(5)))
    assert wrong == "8 missing: conv.weight, conv.bias, bn.weight, …; 5 unexpected: x0, x1, x2, …"


def test_complex_weights_do_not_fit() -> None:
    state = Net().state_dict()
    state["fc.bias"] = torch.zeros(4, dtype=torch.complex64)
    assert misfits(Net(), state) == "1 of another type: fc.bias is complex64 where the model has real numbers"


def test_other_classes() -> None:
    assert other_classes(Net(), Net().state_dict()) is None
    assert other_classes(Net(), Net(9).state_dict()) == 9
    state = Net(9).state_dict()
    state["conv.weight"] = torch.zeros(2, 3, 5, 5)
    assert other_classes(Net(), state) is None  # not the head alone
    state = Net(9).state_dict()
    state["fc.weight"] = torch.zeros(9, 3)
    assert other_classes(Net(), state) is None


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}, {"pickle_protocol": 4}])
def test_malicious_torch_file_is_refused_not_executed(tmp_path: Path, options: dict[str, Any]) -> None:
    trace = tmp_path / "executed"
    path = written({"conv.weight": torch.zeros(1), "x": Evil(trace)}, tmp_path / "evil.pth", **options)
    message = refusal(path)
    assert "refused, it holds the object '" in message
    assert "open'" in message
    assert not trace.exists()


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("name", ["evil.pth", "evil.bin", "evil.pkl", "evil.safetensors"])
def test_malicious_pickle_is_refused_not_executed(tmp_path: Path, protocol: int, name: str) -> None:
    trace = tmp_path / "executed"
    path = tmp_path / name
    path.write_bytes(pickle.dumps({"x": Evil(trace)}, protocol=protocol))
    message = refusal(path)
    assert "is no valid safetensors file" in message if name.endswith("safetensors") else "refused, it holds" in message
    assert not trace.exists()


def test_the_malicious_files_would_have_worked(tmp_path: Path) -> None:
    trace = tmp_path / "executed"
    pickle.loads(pickle.dumps(Evil(trace))).close()
    assert trace.exists()


def test_a_whole_model_is_refused_with_advice(tmp_path: Path) -> None:
    message = refusal(written(Net(), tmp_path / "a.pth"))
    assert "Net'" in message
    assert "save model.state_dict() alone" in message


def test_missing(tmp_path: Path) -> None:
    assert refusal(tmp_path / "a.pth").endswith("a.pth: no such file")
    assert refusal(tmp_path / "a.safetensors").endswith("no such file")


def test_directory(tmp_path: Path) -> None:
    assert "is a directory" in refusal(tmp_path)


def test_null_character() -> None:
    with pytest.raises(CheckpointError, match="no usable file name"):
        read_checkpoint("a\0b")


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_empty(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    assert "empty (0 bytes)" in refusal(tmp_path / name)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.97])
@pytest.mark.parametrize("kind", ["zip", "old", "safetensors"])
def test_truncated(tmp_path: Path, kind: str, share: float) -> None:
    whole = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pth")
    state = {"a": torch.randn(100, 100)}
    if kind == "safetensors":
        save_file(state, whole)
    else:
        written(state, whole, _use_new_zipfile_serialization=kind == "zip")
    path = whole.with_stem("a")
    path.write_bytes(whole.read_bytes()[: int(whole.stat().st_size * share)])
    assert "damaged" in refusal(path) or "not a plain file of tensors" in refusal(path)


@pytest.mark.parametrize("content", [b"not a checkpoint", b"\x80", b"PK\x03\x04", b"{}", b"\0" * 64])
@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_garbage(tmp_path: Path, content: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(content)
    refusal(tmp_path / name)


def test_torchscript_is_refused(tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("a/constants.pkl", b"")
        archive.writestr("a/data.pkl", b"")
    assert "TorchScript archive, which holds code" in refusal(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([torch.zeros(2)], "holds a list, not a dictionary of weights"),
        (torch.zeros(2), "holds a Tensor, not a dictionary"),
        ({"epoch": 3, "args": {"lr": 0.1}}, "holds no weights by name; its keys: 'epoch', 'args'"),
        ({}, "its keys: none"),
        ({0: torch.zeros(2)}, "its keys: 0"),
    ],
)
def test_no_weights(tmp_path: Path, content: Any, said: str) -> None:
    assert said in refusal(written(content, tmp_path / "a.pth"))
