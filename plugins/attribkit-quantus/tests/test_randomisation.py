"""Layers are reset from the last one used down, in a copy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from attribkit_quantus.randomisation import plan, randomised
from attribkit_quantus.results import Evaluation, Randomised, Values
from attribkit_quantus.settings import Settings
from attribkit_quantus.verdict import number, reaction, verdict
from evaluated_nets import net
from torch import nn

from attribkit.errors import ModelError

X = torch.zeros(1, 3, 16, 16)


class Crooked(nn.Module):
    """Defines its layers in another order than it uses them, has one it never uses and weights in no layer."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(4, 2)
        self.unused = nn.Linear(5, 5)
        self.scale = nn.Parameter(torch.ones(9))
        self.first = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.attention = nn.MultiheadAttention(4, 1, batch_first=True)

    def forward(self, x):
        x = self.norm(self.first(x)).relu().flatten(2).mT
        return self.last(self.attention(x, x, x)[0].mean(1))


def test_the_order_is_that_of_use():
    cascade = plan(Crooked().eval(), X, 99)
    # the attention's projection is used without being called: it counts where the attention was
    assert cascade.layers == ("last", "attention.out_proj", "norm", "first")
    assert [depth.layer for depth in cascade.depths] == list(cascade.layers)
    assert [depth.count for depth in cascade.depths] == [1, 2, 3, 4]
    model = Crooked()
    kept = 30 + 9 + model.attention.in_proj_weight.numel() + model.attention.in_proj_bias.numel()
    assert cascade.kept == pytest.approx(kept / sum(p.numel() for p in model.parameters()))


def test_depths_are_even_and_end_at_the_bottom():
    model = nn.Sequential(*[nn.Conv2d(3, 3, 1) for _ in range(25)])
    cascade = plan(model, X, 10)
    counts = [depth.count for depth in cascade.depths]
    assert len(counts) == 10
    assert counts[-1] == 25
    assert set(np.diff([0, *counts])) == {2, 3}
    assert cascade.depths[0].layer == "22"
    assert cascade.depths[cascade.upper].count == 8


@pytest.mark.parametrize(("layers", "upper"), [(1, 1), (2, 1), (8, 3), (9, 3)])
def test_the_upper_layers_are_a_third(layers, upper):
    cascade = plan(nn.Sequential(*[nn.Conv2d(3, 3, 1) for _ in range(layers)]), X, 10)
    assert cascade.depths[cascade.upper].count == upper


def test_layers_lose_what_they_learned_one_after_the_other():
    model = net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(100)
    learned = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    cascade = plan(model, X, 10)
    assert cascade.layers == ("6", "3", "0")
    expected = [{"6"}, {"6", "3"}, {"6", "3", "0"}]
    networks = []
    for (depth, shadow), random in zip(randomised(model, cascade, 0), expected, strict=True):
        changed = {name.split(".")[0] for name, v in shadow.state_dict().items() if not torch.equal(v, learned[name])}
        assert changed == random
        assert depth.count == len(random)
        assert all(float(shadow.state_dict()[f"{name}.weight"].abs().max()) < 10 for name in random)
        networks.append({name: value.clone() for name, value in shadow.state_dict().items()})
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, learned[name]) for name, value in model.state_dict().items())
    again = [shadow.state_dict()["6.weight"].clone() for _, shadow in randomised(model, cascade, 0)]
    assert all(torch.equal(weight, networks[0]["6.weight"]) for weight in again)
    other = next(iter(randomised(model, cascade, 1)))[1].state_dict()["6.weight"]
    assert not torch.equal(other, networks[0]["6.weight"])
    assert not torch.equal(before["0.weight"], learned["0.weight"])


def test_nothing_to_reset():
    with pytest.raises(ModelError, match="reset_parameters"):
        plan(nn.Sequential(nn.Flatten(), nn.ReLU()), X, 3)


@pytest.mark.parametrize(
    ("correlation", "words"),
    [(1.0, "barely reacts"), (0.8, "barely reacts"), (0.79, "reacts little"), (0.5, "reacts little"),
     (0.49, "reacts in part"), (0.2, "reacts in part"), (0.19, "reacts"), (-0.9, "reacts")],
)  # fmt: skip
def test_words_follow_the_numbers(correlation, words):
    assert reaction(correlation) == words


def judged(**signed):
    """Return the verdict on methods with these correlations at the three depths of a network of nine layers."""
    model = nn.Sequential(*[nn.Conv2d(3, 3, 1) for _ in range(9)])
    found = Evaluation(
        "model", "data", Settings(), list(signed), cascade=plan(model, X, 3), same_class=[0.5, 0.25, 0.1]
    )
    for name, rows in signed.items():
        table = np.repeat(np.array(rows)[:, None], 4, 1)
        found.randomised[name] = Randomised(table, table)
    return verdict(found)


def test_the_verdict_says_what_the_numbers_say():
    first, *lines = judged(calm=[0.95, 0.9, 0.1], lively=[0.1, 0.0, 0.0])
    assert "upper 3 of 9 layers random (8, 7 and 6)" in first
    assert "50% of the images" in first
    assert lines[0].startswith("calm barely reacts: ")
    assert "0.95" in lines[0]
    assert lines[1].startswith("lively reacts: ")
    assert lines[2].startswith("So calm says little of what")
    assert len(lines) == 3


def test_a_verdict_without_culprits_accuses_nobody():
    lines = judged(lively=[0.1, 0.0, 0.0], other=[0.3, 0.2, 0.0])
    assert [line for line in lines if line.startswith("So ")] == []
    assert lines[2].startswith("other reacts in part: ")
    assert judged() == []


def test_a_map_that_never_changes_is_called_so():
    model = nn.Sequential(*[nn.Conv2d(3, 3, 1) for _ in range(9)])
    found = Evaluation("model", "data", Settings(), ["still"], cascade=plan(model, X, 3), same_class=[0.0] * 3)
    found.randomised["still"] = Randomised(np.full((3, 4), 0.9), np.full((3, 4), 0.9))
    for size, said in ((0.0, True), (0.3, False)):
        found.values["still", "sensitivity"] = Values(list("abcd"), np.full(4, size))
        assert ("nothing of the image is in these maps" in " ".join(verdict(found))) is said


def test_two_culprits_are_named_together():
    assert judged(a=[0.95, 0.9, 0.1], b=[0.6, 0.0, 0.0], c=[-0.2, 0.0, 0.0])[-1].startswith("So a and b say little")


def test_numbers_are_written_plainly():
    assert [number(value) for value in (0.125, -0.5, -0.001, float("nan"))] == ["0.12", "−0.50", "0.00", "–"]
