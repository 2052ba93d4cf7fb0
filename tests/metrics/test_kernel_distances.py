"""KID and CMMD against other libraries, closed forms and what an unbiased estimate must do."""

import math

import numpy as np
import pytest
import torch

from gendiff.errors import InvalidInputError
from gendiff.metrics import kernel_distances
from gendiff.metrics.kernel_distances import cmmd, kid


def normal(count, dim, seed, shift=0.0):
    return np.random.default_rng(seed).standard_normal((count, dim)) + shift


# KID


def test_kid_by_hand():
    """Three points on a line against three: (1 + 2·3 + ...) written out as loops over pairs."""
    a, b = np.array([[0.0], [1.0], [2.0]]), np.array([[1.0], [3.0], [-1.0]])

    def mean(x, y, skip):
        pairs = [(float(x[i, 0] * y[j, 0]) + 1) ** 3 for i in range(3) for j in range(3) if not (skip and i == j)]
        return sum(pairs) / len(pairs)

    expected = mean(a, a, True) + mean(b, b, True) - 2 * mean(a, b, False)
    assert kid(a, b, subsets=1, subset_size=3).mean == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("seed", [0, 2020])
def test_kid_equals_torch_fidelity_seed_for_seed(seed):
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

    a, b = normal(300, 32, 0), normal(250, 32, 1, 0.3)
    options = {"kid_subsets": 7, "kid_subset_size": 100, "rng_seed": seed, "verbose": False}
    expected = kid_features_to_metric(torch.from_numpy(a), torch.from_numpy(b), **options)
    found = kid(a, b, subsets=7, subset_size=100, seed=seed)
    assert found.mean == pytest.approx(expected[KEY_METRIC_KID_MEAN], rel=1e-10)
    assert found.std == pytest.approx(expected[KEY_METRIC_KID_STD], rel=1e-10)
    assert (found.subsets, found.subset_size) == (7, 100)


def test_kid_of_all_images_equals_torchmetrics():
    from torchmetrics.image.kid import poly_mmd

    a, b = normal(200, 32, 0), normal(200, 32, 1, 0.3)
    expected = poly_mmd(torch.from_numpy(a), torch.from_numpy(b)).item()
    assert kid(a, b, subsets=1, subset_size=200).mean == pytest.approx(expected, rel=1e-10)


def test_kid_is_unbiased():
    """Of equal distributions the mean over draws is zero within three standard errors; both signs occur."""
    draws = [kid(normal(50, 8, 2 * i), normal(50, 8, 2 * i + 1), subsets=1, subset_size=50).mean for i in range(200)]
    assert abs(np.mean(draws)) < 3 * np.std(draws) / math.sqrt(200)
    assert min(draws) < 0 < max(draws)


def test_kid_does_not_know_the_order_of_images():
    a, b = normal(120, 8, 0), normal(120, 8, 1)
    order = np.random.default_rng(2).permutation(120)
    expected = kid(a, b, subsets=2, subset_size=120).mean
    assert kid(a[order], b, subsets=2, subset_size=120).mean == pytest.approx(expected, rel=1e-9)
    assert kid(b, a, subsets=2, subset_size=120).mean == pytest.approx(expected, rel=1e-9)


def test_the_seed_decides():
    a, b = normal(100, 4, 0), normal(100, 4, 1)
    assert kid(a, b, 5, 20, seed=3) == kid(a, b, 5, 20, seed=3)
    assert kid(a, b, 5, 20, seed=3) != kid(a, b, 5, 20, seed=4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "subset_size=1000 is more than the images there are, 30 and 20: give subset_size=20 or less"),
        ({"subset_size": 1}, "subset_size must be a whole number of at least 2, got 1"),
        ({"subset_size": 20, "subsets": 0}, "subsets must be a whole number of at least 1, got 0"),
        ({"subset_size": 20, "seed": 2**32}, "seed must be a whole number from 0 to 4294967295, got 4294967296"),
    ],
)
def test_kid_of_bad_arguments(arguments, message):
    with pytest.raises(InvalidInputError, match=message):
        kid(normal(30, 4, 0), normal(20, 4, 1), **arguments)


# CMMD


def test_cmmd_by_hand():
    rows = normal(5, 3, 0), normal(4, 3, 1)
    x, y = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in rows)

    def mean(first, second):
        return np.mean([[math.exp(-np.square(p - q).sum() / 200) for p in first] for q in second])

    assert cmmd(*rows) == pytest.approx(1000 * (mean(x, x) + mean(y, y) - 2 * mean(x, y)), rel=1e-10)


def test_cmmd_of_opposite_points():
    """Squared distance 4, so 1000 (1 + 1 - 2 exp(-4/200))."""
    found = cmmd(np.array([[1.0, 0.0]]), np.array([[-2.0, 0.0]]))
    assert found == pytest.approx(-2000 * math.expm1(-0.02), rel=1e-12)


def test_cmmd_of_a_set_and_itself_is_zero_and_grows_with_the_difference():
    a = normal(60, 8, 0)
    assert cmmd(a, a) == pytest.approx(0, abs=1e-10)
    near, far = cmmd(a, normal(60, 8, 1, 0.2)), cmmd(a, normal(60, 8, 1, 1.0))
    assert 0 < near < far


def test_blocks_of_rows_change_nothing(monkeypatch):
    a, b = normal(60, 8, 0), normal(50, 8, 1)
    expected = cmmd(a, b)
    monkeypatch.setattr(kernel_distances, "BLOCK", 7)
    assert cmmd(a, b) == pytest.approx(expected, rel=1e-11)


def test_cmmd_equals_torch_fidelity_s_biased_rbf_mmd():
    from torch_fidelity.metric_kid import kernel_rbf, mmd2

    a, b = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in (normal(80, 16, 0), normal(80, 16, 1, 0.5)))
    kernels = (kernel_rbf(x, y, kid_kernel_rbf_sigma=10) for x, y in ((a, a), (a, b), (b, b)))
    assert cmmd(a, b) == pytest.approx(1000 * mmd2(*kernels, mmd_est="biased"), rel=1e-9)


def test_cmmd_of_a_row_without_direction():
    with pytest.raises(InvalidInputError, match="fb must have rows of a length above 0, row 1 is all zero"):
        cmmd(normal(3, 4, 0), np.array([[1.0, 0, 0, 0], [0, 0, 0, 0]]))


@pytest.mark.parametrize("distance", [kid, cmmd])
def test_features_are_checked(distance):
    with pytest.raises(InvalidInputError, match="fa has features of 3 dimensions, fb of 4"):
        distance(normal(5, 3, 0), normal(5, 4, 0))
    with pytest.raises(InvalidInputError, match="fb must be finite: row 2, column 0 is inf"):
        distance(normal(5, 1, 0), np.array([[0.0], [1.0], [np.inf]]))
