"""The soak test in short; ``python tests/soak.py`` is the whole of it."""

import pytest
import torch
from soak import Jobs, left, soak


@pytest.mark.filterwarnings("ignore::attribkit.CoverageWarning")
def test_a_few_hundred_attributions_leave_nothing(tmp_path, one_thread):
    said = []
    found = soak(210, 105, tmp_path, say=said.append)
    assert found["changed"] == {}
    assert found["after"]["hooks"] == found["after"]["torch modes"] == 0
    assert found["most"] < 20
    assert len(said) == 10


def test_what_is_left_behind_is_seen(tmp_path):
    net = Jobs(tmp_path).small
    before = left(net)
    handle = net.relu.register_forward_hook(lambda *_: None)
    net.head.weight.grad = torch.zeros_like(net.head.weight)
    net.train()
    with open(tmp_path / "f", "w"):
        after = left(net)
    handle.remove()
    assert {name for name in before if after[name] > before[name]} == {
        "hooks",
        "gradients",
        "modules in training",
        "open files",
    }
