"""The measures on maps and networks whose numbers are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from attribkit_quantus import faithfulness, grids, measures
from attribkit_quantus.statistics import Interval, bootstrap, rank_correlation, ranks


def maps(*rows):
    """Return maps [N, 1, 1, P]."""
    return torch.tensor(rows, dtype=torch.float64)[:, None, None, :]


def test_equal_values_share_their_rank():
    np.testing.assert_array_equal(ranks(np.array([[3.0, 1.0, 3.0, 2.0], [0.0, 0.0, 0.0, 0.0]])),
                                  [[3.5, 1.0, 3.5, 2.0], [2.5, 2.5, 2.5, 2.5]])  # fmt: skip


def test_rank_correlation():
    a = np.array([[1.0, 2.0, 3.0, 4.0]] * 5)
    b = np.array(
        [[2.0, 4.0, 8.0, 99.0], [4.0, 3.0, 2.0, 1.0], [1.0, 2.0, 4.0, 3.0], [5.0] * 4, [1.0, 2.0, 3.0, math.nan]]
    )
    # with one pair exchanged: 1 - 6·Σd²/(n(n² - 1)) = 1 - 6·2/60
    np.testing.assert_allclose(rank_correlation(a, b), [1.0, -1.0, 0.8, math.nan, math.nan])


def test_bootstrap_is_the_mean_with_its_interval():
    values = np.random.default_rng(1).normal(3, 2, size=400)
    found = bootstrap(values, seed=0)
    assert found.mean == pytest.approx(values.mean())
    assert found.n == 400
    # the normal interval: mean ± 1.96 s/√n
    half = 1.96 * values.std() / 20
    assert found.low == pytest.approx(values.mean() - half, abs=0.15 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.15 * half)
    assert found == bootstrap(values, seed=0) != bootstrap(values, seed=1)


def test_bootstrap_draws_groups_together():
    values, groups = np.repeat(np.random.default_rng(1).normal(size=25), 16), np.repeat(np.arange(25), 16)
    alone, together = bootstrap(values), bootstrap(values, groups)
    assert together.mean == alone.mean
    assert (together.high - together.low) / (alone.high - alone.low) == pytest.approx(4, rel=0.15)


def test_bootstrap_of_little():
    assert bootstrap([math.nan, 2.0, 4.0], seed=0) == Interval(3.0, 2.0, 4.0, 2)
    one, none = bootstrap([5.0, math.nan]), bootstrap([math.nan])
    assert (one.mean, one.n, math.isnan(one.low), math.isnan(one.high)) == (5.0, 1, True, True)
    assert (none.n, math.isnan(none.mean)) == (0, True)


def test_complexity_and_sparseness():
    found = maps([1.0, -1.0, 1.0, 1.0], [0.0, 0.0, -7.0, 0.0], [0.0, 0.0, 1.0, -1.0], [0.0] * 4)
    np.testing.assert_allclose(measures.complexity(found), [math.log(4), 0.0, math.log(2), math.nan], atol=1e-12)
    np.testing.assert_allclose(measures.sparseness(found), [0.0, 0.75, 0.5, math.nan], atol=1e-12)


def test_a_pixel_counts_all_its_channels():
    found = torch.zeros(1, 2, 1, 2, dtype=torch.float64)
    found[0, 0, 0, 0], found[0, 1, 0, 0], found[0, 0, 0, 1] = 1.0, -1.0, 2.0
    assert measures.complexity(found)[0] == pytest.approx(math.log(2))
    assert measures.heatmap(found, "signed").tolist() == [[[0.0, 2.0]]]
    assert measures.heatmap(found, "absolute").tolist() == [[[2.0, 2.0]]]


def test_sensitivity_of_known_maps():
    x = torch.zeros(2, 1, 4, 4, dtype=torch.float64)
    x[:, :, 0, 0] = torch.tensor([1.0, 10.0])[:, None]  # ranges 1 and 10
    options = {"repeats": 5, "radius": 0.02, "seed": 0}
    constant = torch.ones_like(x)
    assert measures.max_sensitivity(lambda x: constant, x, constant, **options).tolist() == [0.0, 0.0]
    # a map that is the image changes by the noise, relative to the image's norm: alike for both, as both scale
    noise = 0.02 * (2 * measures.unit_noise(x, 5, 0) - 1)
    expected = noise.flatten(1).norm(dim=1).max()
    np.testing.assert_allclose(measures.max_sensitivity(lambda x: x, x, x, **options), [expected] * 2)
    zero = torch.zeros_like(x)
    assert np.isnan(measures.max_sensitivity(lambda x: x, x, zero, **options)).all()


def test_places_follow_the_values():
    heat = torch.tensor([[[0.5, -1.0], [2.0, 0.7]]])
    assert faithfulness.places(heat).tolist() == [[[2, 3], [0, 1]]]


def test_places_of_equal_values_are_drawn_and_the_same_for_all():
    heat = torch.zeros(2, 8, 8)
    heat[:, 4:] = 1
    found = faithfulness.places(heat, seed=3)
    assert torch.equal(found[0], found[1])
    assert sorted(found[0, 4:].flatten().tolist()) == list(range(32))
    assert found[0, 4:].flatten().tolist() != list(range(32))
    assert torch.equal(faithfulness.places(heat[:1], seed=3), found[:1])
    assert not torch.equal(faithfulness.places(heat, seed=4), found)


def brightness(x, classes):
    """Return a score that is linear in the pixels."""
    return x.sum((1, 2, 3))


def test_deletion_and_insertion_of_a_linear_score():
    x = torch.tensor([[[[4.0, 3.0], [2.0, 1.0]]]], dtype=torch.float64)
    place = faithfulness.places(x[:, 0])
    curve = faithfulness.deletion(brightness, x, torch.zeros(1), place, steps=4)
    assert curve.tolist() == [[10.0, 6.0, 3.0, 1.0, 0.0]]
    assert faithfulness.area(curve).tolist() == [(5 + 6 + 3 + 1 + 0) / 4]
    assert faithfulness.mean_drop(curve).tolist() == [pytest.approx((0 + 4 + 7 + 9 + 10) / 5)]
    backwards = faithfulness.deletion(brightness, x, torch.zeros(1), 3 - place, steps=4)
    assert backwards.tolist() == [[10.0, 9.0, 7.0, 4.0, 0.0]]


def test_insertion_goes_from_the_blurred_image_to_the_image():
    x = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    score = lambda a, c: (a * weights).sum((1, 2, 3))  # noqa: E731
    soft = faithfulness.blurred(x)
    gain = ((x - soft) * weights)[:, 0]
    curve = faithfulness.insertion(score, x, torch.zeros(2), faithfulness.places(gain), steps=256)
    torch.testing.assert_close(curve[:, 0], score(soft, None))
    torch.testing.assert_close(curve[:, -1], score(x, None))
    torch.testing.assert_close(curve.diff(dim=1), gain.flatten(1).sort(dim=1, descending=True).values)


def test_the_blur_is_a_gaussian():
    x = torch.zeros(1, 1, 65, 65, dtype=torch.float64)
    x[0, 0, 32, 32] = 1
    found = faithfulness.blurred(x)[0, 0]
    assert float(found.sum()) == pytest.approx(1)
    deviation = 65 * faithfulness.BLUR
    assert float(found[32, 36] / found[32, 32]) == pytest.approx(math.exp(-16 / (2 * deviation**2)))
    torch.testing.assert_close(found, found.T)
    constant = torch.full((1, 3, 20, 31), 2.5, dtype=torch.float64)
    torch.testing.assert_close(faithfulness.blurred(constant), constant)


@pytest.mark.parametrize("shape", [(56, 56), (57, 60), (8, 8)])
def test_pixel_flipping_takes_whole_patches_in_the_order_of_their_sums(shape):
    x = torch.rand(1, 2, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    heat = torch.rand(1, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    side = faithfulness.patch_side(x)
    assert side == max(1, min(shape) // 28)
    seen = []

    def score(a, classes):
        seen.append((a != x)[0, 0])
        return brightness(a, classes)

    curve = faithfulness.pixel_flipping(score, x, torch.zeros(1), heat, flips=3, steps=3, seed=0)
    sums = {
        (row, column): float(heat[0, row * side : (row + 1) * side, column * side : (column + 1) * side].sum())
        for row in range(-(-shape[0] // side))
        for column in range(-(-shape[1] // side))
    }
    best = sorted(sums, key=sums.get, reverse=True)
    assert not seen[0].any()
    for count, changed in enumerate(seen):
        expected = torch.zeros(shape, dtype=torch.bool)
        for row, column in best[:count]:
            expected[row * side : (row + 1) * side, column * side : (column + 1) * side] = True
        assert torch.equal(changed, expected)
    assert curve.shape == (1, 4)


def test_no_class_twice_in_a_grid_and_no_image_twice():
    classes = [0, 0, 0, 1, 1, 2, 2, 2, 2, 3, 4]
    found = grids.arrange(classes, 4, 9, seed=0)
    assert found.shape == (2, 4)
    assert len(set(found.ravel().tolist())) == 8
    assert all(len({classes[index] for index in grid}) == 4 for grid in found)
    np.testing.assert_array_equal(found, grids.arrange(classes, 4, 9, seed=0))
    assert grids.arrange(classes, 4, 1, seed=0).shape == (1, 4)
    assert grids.arrange([0, 1, 2], 4, 5, seed=0).shape == (0, 4)
    assert grids.arrange([], 4, 5, seed=0).shape == (0, 4)


def test_every_image_finds_a_place_that_can():
    classes = np.random.default_rng(0).permutation(np.repeat(np.arange(8), 6))
    assert len(grids.arrange(classes, 4, 99, seed=0)) == 12


@pytest.mark.parametrize(("high", "wide", "side"), [(8, 8, 2), (9, 7, 2), (9, 10, 3)])
def test_grids_hold_their_images_in_their_cells(high, wide, side):
    cells = side * side
    inputs = torch.arange(1.0, cells + 1)[:, None, None, None].expand(cells, 2, high, wide).contiguous()
    found = grids.build(inputs, np.arange(cells)[None, ::-1].copy(), side)
    assert found.shape == (1, 2, high, wide)
    rows, columns = grids.edges(high, side), grids.edges(wide, side)
    for cell in range(cells):
        row, column = divmod(cell, side)
        part = found[0, :, rows[row] : rows[row + 1], columns[column] : columns[column + 1]]
        torch.testing.assert_close(part, torch.full_like(part, cells - cell))


def test_the_pointing_game_knows_a_perfect_map_from_an_even_one():
    members = np.arange(8).reshape(2, 4)
    game = grids.Grids(
        torch.rand(2, 1, 9, 9, generator=torch.Generator().manual_seed(0)), torch.tensor(members), members
    )
    rows = grids.edges(9, 2)

    def perfect(x, classes):
        found = torch.full_like(x, -1.0)
        for index, cell in enumerate((classes % 4).tolist()):
            row, column = divmod(cell, 2)
            found[index, 0, rows[row] : rows[row + 1], rows[column] : rows[column + 1]] = 1
        return found

    assert (grids.localise(perfect, game) == 1).all()
    assert (grids.localise(lambda x, c: -perfect(x, c), game) == 0).all()
    assert (grids.localise(lambda x, c: -torch.ones_like(x), game) == 0).all()
    even = grids.localise(lambda x, c: torch.ones_like(x), game)
    np.testing.assert_allclose(even.sum(1), 1)  # the cells share everything
    np.testing.assert_allclose(even[0], [16 / 81, 20 / 81, 20 / 81, 25 / 81])
