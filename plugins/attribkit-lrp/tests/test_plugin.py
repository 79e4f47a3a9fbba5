"""The plugin is installed and leaves a broken model as it was."""

import torch
from attribkit_lrp import _METHODS

import attribkit as ak


def test_the_methods_are_registered():
    known = ak.methods()
    for name, (_, summary, source) in _METHODS.items():
        assert (known[name].distribution, known[name].summary) == ("attribkit-lrp", summary)
        assert known[name].source == source != ""
        assert known[name].load().name == name


def test_the_model_keeps_its_batch_norms():
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 5)
    )
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name in _METHODS:
        assert ak.attribute(model, torch.randn(2, 3, 8, 8), name, 1).values.abs().sum() > 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model[0].bias is not None
    assert model[1].eps == 1e-5
