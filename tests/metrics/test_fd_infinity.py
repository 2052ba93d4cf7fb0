"""The extrapolated Fréchet distance: free of the bias it removes, and a plain line in 1/N."""

import numpy as np
import pytest

from gendiff.errors import InvalidInputError, MetricWarning
from gendiff.metrics.fd_infinity import fd_infinity
from gendiff.metrics.frechet import frechet_distance


def normal(count, dim, seed, shift=0.0):
    return np.random.default_rng(seed).standard_normal((count, dim)) + shift


def test_equal_distributions_are_at_zero():
    """Below a tenth of the distance that all images have, which is bias alone."""
    a, b = normal(4000, 16, 0), normal(4000, 16, 1)
    result = fd_infinity(a, b)
    assert abs(result.value) < 0.1 * frechet_distance(a, b).value
    assert result.r2 > 0.95
    assert result.warnings == ()


def test_a_known_distance_is_found_better_than_by_all_images():
    a, b = normal(1500, 32, 0), normal(1500, 32, 1, 0.125)  # 32 · 0.125² = 0.5
    assert abs(fd_infinity(a, b).value - 0.5) < 0.3 * abs(frechet_distance(a, b).value - 0.5)


def test_sizes_run_evenly_to_the_smaller_set():
    result = fd_infinity(normal(1000, 4, 0), normal(2000, 4, 1), points=10)
    assert result.sizes == tuple(range(100, 1001, 100))
    assert len(result.distances) == 10
    assert fd_infinity(normal(60_000, 1, 0), normal(60_000, 1, 1), points=2).sizes == (5000, 60_000)


def test_value_and_r2_are_those_of_the_line():
    result = fd_infinity(normal(500, 4, 0), normal(500, 4, 1), points=6)
    inverse, distances = 1 / np.array(result.sizes), np.array(result.distances)
    slope, intercept = np.polyfit(inverse, distances, 1)
    rest = np.square(distances - slope * inverse - intercept).sum()
    assert result.value == pytest.approx(intercept, rel=1e-9)
    assert result.r2 == pytest.approx(1 - rest / np.square(distances - distances.mean()).sum(), rel=1e-9)


def test_the_seed_decides():
    a, b = normal(300, 4, 0), normal(300, 4, 1)
    assert fd_infinity(a, b, seed=1) == fd_infinity(a, b, seed=1)
    assert fd_infinity(a, b, seed=1) != fd_infinity(a, b, seed=2)


def test_equal_images_have_no_variance_to_explain():
    result = fd_infinity(np.ones((50, 2)), np.ones((50, 2)), points=4)
    assert (result.value, result.r2) == (0, 1)


def test_sizes_too_small_for_a_line_make_a_warning():
    with pytest.warns(MetricWarning, match=r"FD∞: the smallest size 10 < 2·d=64, where FD is not linear in 1/N"):
        result = fd_infinity(normal(100, 32, 0), normal(100, 32, 1), points=3)
    assert fd_infinity(normal(100, 32, 0), normal(100, 32, 1), points=3, warn=False) == result


@pytest.mark.parametrize(
    ("count", "arguments", "message"),
    [
        (9, {}, "points=15 sizes need more images than 9"),
        (12, {"points": 15}, "points=15 sizes need more images than 12"),
        (50, {"points": 1}, "points must be a whole number of at least 2, got 1"),
        (50, {"seed": -1}, "seed must be a whole number of at least 0, got -1"),
        (1, {}, "fa must hold at least 2 images, got 1"),
    ],
)
def test_bad_input(count, arguments, message):
    with pytest.raises(InvalidInputError, match=message):
        fd_infinity(normal(count, 2, 0), normal(count, 2, 1), **arguments)
