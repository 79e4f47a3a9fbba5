"""How many occluded images the full engine runs at once."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import attribkit as ak
from attribkit.engine import occluded


class Net(nn.Module):
    """Its largest value, of the convolution, has 4 * 64 * 64 floats: 64 KiB, so that a row counts as 256 KiB."""

    def __init__(self, functional=False, channels=4):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.pool = nn.Conv2d(3, channels, 3, padding=1), nn.AdaptiveAvgPool2d(8)
        self.head, self.functional = nn.Linear(channels * 64, 8), functional
        self.batches = []

    def forward(self, x):
        self.batches.append(len(x))
        x = self.pool(self.conv(x)).flatten(1)
        return F.linear(x, self.head.weight) if self.functional else self.head(x)


def run(monkeypatch, net, *, cache=1 << 20, share=1.5, batch=1, **options):
    """Run the full engine; return the size of its largest batch after the passes that look at the model."""
    monkeypatch.setattr(occluded, "CACHE", cache)
    monkeypatch.setattr(occluded, "WEIGHTS", share)
    x = torch.randn(batch, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    found = ak.attribute(net.eval(), x, "occlusion", 1, window=8, stride=8, engine="full", **options)
    # for the target, for the clean scores, and two that tell whether rows depend on each other; then the windows
    looks, windows = net.batches[:4], net.batches[4:]
    assert looks == [batch, batch, batch, 2]
    largest = max(windows)
    assert sum(windows) == 64 * batch
    net.batches.clear()
    return largest, found.extras["score_map"]


@pytest.mark.parametrize("batch", [1, 3])
def test_as_many_rows_as_stay_in_the_caches(monkeypatch, batch):
    assert run(monkeypatch, Net(), batch=batch)[0] == 3 * (1 << 20) // (256 << 10)
    assert run(monkeypatch, Net(), batch=batch, cache=1)[0] == 1


@pytest.mark.parametrize("functional", [False, True])
def test_more_rows_where_large_weights_are_read_for_each_batch(monkeypatch, functional):
    """8 KiB of weights at one byte for 2**-10 of a row's: 8192 * 1024 / 262144 = 32 rows, or 16, or 4."""
    for share, rows in ((2.0**-10, 32), (2.0**-9, 16), (2.0**-7, 4)):
        assert run(monkeypatch, Net(functional), cache=1, share=share)[0] == rows


def test_no_more_than_memory_and_windows_allow(monkeypatch):
    net, share = Net(), 2.0**-20
    assert run(monkeypatch, net, share=share)[0] == occluded.ROWS
    assert run(monkeypatch, net, share=share, max_batch_bytes=5 * (256 << 10))[0] == 5
    assert run(monkeypatch, net, share=share, max_batch_bytes=1)[0] == 1


def test_scores_are_the_same_for_any_number_of_rows(monkeypatch):
    maps = [run(monkeypatch, Net(), cache=cache)[1] for cache in (1, 1 << 18, 1 << 24)]
    for other in maps[1:]:
        torch.testing.assert_close(maps[0], other)
