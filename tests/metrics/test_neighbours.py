"""Precision, recall, density and coverage at their corners, by hand, and against another library."""

import numpy as np
import pytest
import torch

from gendiff.errors import InvalidInputError
from gendiff.metrics.neighbours import prdc


def normal(count, dim, seed, shift=0.0):
    return np.random.default_rng(seed).standard_normal((count, dim)) + shift


def by_hand(real, fake, k):
    """The four definitions with every distance taken by itself."""

    def distances(x, y):
        return np.array([[np.linalg.norm(p - q) for q in y] for p in x])

    def radii(x):
        return np.sort(distances(x, x), axis=1)[:, k]

    across = distances(real, fake)
    in_real, in_fake = across <= radii(real)[:, None], across <= radii(fake)
    return in_real.any(0).mean(), in_fake.any(1).mean(), in_real.sum(0).mean() / k, in_real.any(1).mean()


def shares(result):
    return result.precision, result.recall, result.density, result.coverage


def test_points_on_a_line():
    """Real 0, 1, 3 with radii 1, 1, 2; fake 2, 10, 11 with radii 8, 1, 1."""
    result = prdc(np.array([[0.0], [1], [3]]), np.array([[2.0], [10], [11]]), k=1)
    assert shares(result) == pytest.approx((1 / 3, 1, 2 / 3, 2 / 3))
    assert (result.k, result.n_real, result.n_fake) == (1, 3, 3)


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("block", [7, 2048])
def test_definitions_for_any_block(k, block):
    real, fake = normal(60, 3, 0), normal(45, 3, 1, 0.7)
    assert shares(prdc(real, fake, k, block)) == pytest.approx(by_hand(real, fake, k), rel=1e-12)


@pytest.mark.parametrize("k", [3, 5])
def test_parity_with_torch_fidelity(k):
    from torch_fidelity.metric_prc import prc_features_to_metric

    real, fake = normal(400, 8, 0), normal(300, 8, 1, 0.4)
    expected = prc_features_to_metric(
        torch.from_numpy(fake), torch.from_numpy(real), prc_neighborhood=k, verbose=False
    )  # fmt: skip
    found = prdc(real, fake, k, block=128)
    # Its means are float32.
    assert (found.precision, found.recall) == pytest.approx((expected["precision"], expected["recall"]), rel=1e-6)


def test_identical_sets_are_inside_each_other():
    rows = normal(200, 16, 0) + 1e3
    result = prdc(rows, rows.copy(), block=64)
    assert (result.precision, result.recall, result.coverage) == (1, 1, 1)


def test_disjoint_sets_are_outside_each_other():
    assert shares(prdc(normal(100, 4, 0), normal(100, 4, 1, 1e3))) == (0, 0, 0, 0)


def test_a_collapsed_set_has_no_recall():
    """Ten real images, each a hundred times: what is made is real, and almost nothing real is made."""
    real = normal(1000, 8, 0)
    result = prdc(real, np.repeat(real[:10], 100, axis=0))
    assert result.precision == 1
    assert result.recall == 0.01
    assert result.coverage < 0.1


def test_copies_are_at_distance_zero():
    """Radii of copies are 0, and a copy must be in its ball whatever the rounding of large numbers."""
    rows = np.repeat(normal(20, 300, 0) * 1e3, 5, axis=0)
    assert prdc(rows, rows[::-1]).precision == 1


def test_order_does_not_matter():
    real, fake = normal(100, 4, 0), normal(80, 4, 1)
    assert prdc(real[::-1], fake[::-1], block=32) == prdc(real, fake, block=32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 5}, "k=5 must be below the 5 images of fake"),
        ({"k": 0}, "k must be a whole number of at least 1, got 0"),
        ({"k": 2.0}, "k must be a whole number of at least 1, got 2.0"),
        ({"block": 0}, "block must be a whole number of at least 1, got 0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(InvalidInputError, match=message):
        prdc(normal(9, 2, 0), normal(5, 2, 1), **arguments)


def test_features_are_checked():
    with pytest.raises(InvalidInputError, match="real has features of 3 dimensions, fake of 4"):
        prdc(normal(5, 3, 0), normal(5, 4, 0))
    with pytest.raises(InvalidInputError, match="fake must hold at least 2 images, got 1"):
        prdc(normal(5, 3, 0), normal(1, 3, 0))
