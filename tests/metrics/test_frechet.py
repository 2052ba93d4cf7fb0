"""The Fréchet distance against closed forms, other libraries, its invariances and its bias law."""

import math
import warnings

import numpy as np
import pytest
import scipy
import torch

from gendiff.errors import InvalidInputError, MetricWarning
from gendiff.metrics.frechet import FrechetStats, frechet_distance

SCIPY = tuple(map(int, scipy.__version__.split(".")[:2]))


def normal(count, dim, seed, scale=1.0):
    return np.random.default_rng(seed).standard_normal((count, dim)) * scale


def correlated(count, dim, seed):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((count, dim)) @ rng.standard_normal((dim, dim)) / dim**0.5 + rng.standard_normal(dim)


def rotation(dim, seed):
    return np.linalg.qr(normal(dim, dim, seed))[0]


def moments(mean, cov, n=None):
    return FrechetStats.from_moments(np.array(mean, dtype=float), np.array(cov, dtype=float), n)


def value(a, b, route="auto"):
    return frechet_distance(a, b, route=route, warn=False).value


def near(expected, rel):
    return pytest.approx(expected, rel=rel, abs=0)


A2 = np.array([[2.0, 0.6], [0.6, 1.0]])
TURN = np.array([[math.cos(1), -math.sin(1)], [math.sin(1), math.cos(1)]])
B2 = TURN @ np.diag([3.0, 0.5]) @ TURN.T
CLOSED_FORMS = {
    "one dimension": (moments([0], [[1]]), moments([3], [[4]]), 10),
    "identity": (moments(np.zeros(16), np.eye(16)), moments(np.full(16, 0.5), 4 * np.eye(16)), 20),
    "diagonal": (moments([0, 0, 0], np.diag([1, 4, 9])), moments([1, 0, 0], np.diag([4, 1, 16])), 4),
    "diagonal, every mean shifted": (moments([0] * 3, np.diag([1, 4, 9])), moments([1] * 3, np.diag([4, 1, 16])), 6),
    "two by two": (
        moments([0, 0], A2),
        moments([0, 0], B2),
        A2.trace() + B2.trace() - 2 * math.sqrt((A2 @ B2).trace() + 2 * math.sqrt(np.linalg.det(A2 @ B2))),
    ),
    "orthogonal lines": (moments([0, 0], np.diag([1, 0])), moments([0, 0], np.diag([0, 1])), 2),
    "line and ball": (moments([0] * 3, np.diag([1, 0, 0])), moments([0] * 3, np.eye(3)), 2),
}


@pytest.mark.parametrize("case", CLOSED_FORMS)
def test_closed_forms(case):
    a, b, expected = CLOSED_FORMS[case]
    assert value(a, b) == near(expected, 1e-12)
    assert value(b, a) == near(expected, 1e-12)


@pytest.mark.parametrize("case", ["orthogonal lines", "line and ball"])
def test_closed_forms_of_singular_covariances_in_a_turned_frame(case):
    """Rounding of zero eigenvalues, 1e-16, must not enter with its root, 1e-8."""
    a, b, expected = CLOSED_FORMS[case]
    turn = rotation(a.dim, 0)
    turned = [moments(turn @ stats.mean, turn @ stats.cov @ turn.T) for stats in (a, b)]
    assert value(*turned) == near(expected, 1e-12)


@pytest.mark.parametrize("smallest", [1e-6, 1e-9, 1e-12])
def test_small_eigenvalues_keep_their_digits(smallest):
    """Commuting covariances have Σ(√λ - √μ)²; roots of eigenvalues of the product are off by 1e-9 at 1e-12."""
    turn, first = rotation(100, 0), np.logspace(math.log10(smallest), 0, 100)
    second = np.random.default_rng(1).permutation(first)
    covs = [(turn * spectrum) @ turn.T for spectrum in (first, second)]
    a, b = (moments(np.zeros(100), (cov + cov.T) / 2) for cov in covs)
    assert value(a, b) == near(np.square(np.sqrt(first) - np.sqrt(second)).sum(), 1e-12)


def test_the_result_says_how_it_came_about():
    result = frechet_distance(moments([0], [[1]], 500), moments([3], [[4]]))
    assert (result.mean_term, result.cov_term, result.value) == pytest.approx((9, 1, 10), rel=1e-12)
    assert (result.n_a, result.n_b, result.route, result.warnings) == (500, None, "statistics", ())


# Other libraries


def fidelity(a, b):
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

    stats = (fid_features_to_statistics(torch.from_numpy(side)) for side in (a, b))
    return fid_statistics_to_metric(*stats, verbose=False)[KEY_METRIC_FID]


def torchmetrics_fid(a, b):
    from torchmetrics.image.fid import _compute_fid

    sides = (torch.from_numpy(side) for side in (a, b))
    return _compute_fid(*(part for side in sides for part in (side.mean(0), side.T.cov()))).item()


@pytest.mark.parametrize("other", [fidelity, torchmetrics_fid])
def test_parity_with_other_libraries(other):
    a, b = correlated(700, 64, 0), correlated(600, 64, 1)
    assert value(a, b) == near(other(a, b), 1e-10)
    assert value(a, b, "features") == near(other(a, b), 1e-10)


def mirrored(spectrum, seed):
    """A dense covariance with that spectrum, at the cost of two outer products."""
    axis = normal(1, len(spectrum), seed)[0]
    axis /= np.linalg.norm(axis)
    half = np.diag(spectrum) - 2 * np.outer(axis, axis * spectrum)
    cov = half - 2 * np.outer(half @ axis, axis)
    return (cov + cov.T) / 2


def test_parity_at_the_width_of_inception():
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

    spectra = np.logspace(0, -3, 2048), np.linspace(0.1, 1, 2048)
    stats = [{"mu": normal(1, 2048, seed)[0], "sigma": mirrored(spectra[seed], seed)} for seed in range(2)]
    expected = fid_statistics_to_metric(*stats, verbose=False)[KEY_METRIC_FID]
    assert value(*(moments(side["mu"], side["sigma"]) for side in stats)) == near(expected, 1e-10)


@pytest.mark.skipif(SCIPY >= (1, 18), reason="clean-fid calls sqrtm(disp=False), which SciPy 1.18 no longer has")
def test_parity_with_clean_fid():
    from cleanfid.fid import frechet_distance as clean

    a, b = correlated(700, 64, 0), correlated(600, 64, 1)
    stats = [part for side in (a, b) for part in (side.mean(0), np.cov(side, rowvar=False))]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*disp.*", category=DeprecationWarning)
        expected = clean(*stats)
    assert value(a, b) == near(expected, 1e-10)


# Invariants


@pytest.mark.parametrize(("count", "dim", "route"), [(300, 16, "statistics"), (50, 200, "features")])
def test_invariants(count, dim, route):
    a, b = correlated(count, dim, 0), correlated(count + 30, dim, 1)
    expected = frechet_distance(a, b, warn=False)
    assert expected.route == route
    turn, order = rotation(dim, 2), np.random.default_rng(3).permutation(count)
    assert value(b, a) == near(expected.value, 1e-12)
    assert value(a[order], b) == near(expected.value, 1e-12)
    assert value(a @ turn, b @ turn) == near(expected.value, 1e-11)
    assert value(a + 1e4, b + 1e4) == near(expected.value, 1e-9)
    assert value(3 * a, 3 * b) == near(9 * expected.value, 1e-12)
    assert abs(value(a, a)) <= 1e-9


@pytest.mark.parametrize(("count", "dim"), [(300, 16), (200, 300)])
@pytest.mark.parametrize("route", ["features", "statistics"])
def test_a_set_has_no_distance_to_itself(count, dim, route):
    rows = correlated(count, dim, 0)
    assert 0 <= value(rows, rows.copy(), route) <= 1e-9


def test_all_routes_agree():
    a, b = correlated(500, 40, 0), correlated(300, 40, 1)
    assert value(a, b, "statistics") == near(value(a, b, "features"), 1e-9)


def test_statistics_of_few_images_know_their_rank():
    """An eigenvalue that must be 0 is not taken for a small one: no digits are lost to N < d."""
    a, b = normal(100, 200, 0), normal(120, 200, 1)
    assert value(a, b, "statistics") == near(value(a, b, "features"), 1e-10)


def test_few_images_against_a_file_of_statistics():
    a, b = normal(100, 200, 0), correlated(900, 200, 1)
    mixed = frechet_distance(a, moments(b.mean(0), np.cov(b, rowvar=False), 900), warn=False)
    assert mixed.route == "mixed"
    assert mixed.value == near(value(a, b, "features"), 1e-10)


def test_input_may_be_float32_or_bfloat16_tensors_and_integers():
    a, b = torch.from_numpy(normal(200, 4, 0)).float(), torch.from_numpy(normal(200, 4, 1)).bfloat16()
    assert value(a, b) == value(a.double().numpy(), b.double().numpy())
    assert value((a * 9).long(), a) == value((a * 9).long().double(), a)


# Bias


def test_bias_law():
    """E[FD] of two samples of N(0, I) is d (d + 5) / (2 N)."""
    draws = [value(normal(1000, 64, 2 * seed), normal(1000, 64, 2 * seed + 1)) for seed in range(5)]
    assert np.mean(draws) == near(64 * 69 / 2000, 0.1)


def test_bias_of_any_spectrum_is_told():
    """The note's estimate against the distance that two samples of one Gaussian have."""
    scale = np.arange(1, 65) ** -0.5
    result = frechet_distance(normal(500, 64, 0, scale), normal(400, 64, 1, scale), warn=False)
    (note,) = result.warnings
    assert note.startswith("N=400 < 10·d=640; bias ≈ ")
    assert note.endswith("; give more images, or use features of fewer dimensions, KID, or FD∞")
    assert float(note.split()[5].rstrip(";")) == near(result.value, 0.15)


def test_enough_images_make_no_warning():
    assert frechet_distance(normal(640, 64, 0), normal(640, 64, 1)).warnings == ()


def test_few_images_make_a_warning_and_fewer_than_dimensions_an_error_note():
    with pytest.warns(MetricWarning, match=r"^N=90 < 10·d=100; bias ≈") as caught:
        frechet_distance(normal(90, 10, 0), normal(1000, 10, 1))
    assert len(caught) == 1
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = frechet_distance(normal(9, 10, 0), normal(9, 10, 1))
    assert result.warnings == tuple(str(warning.message) for warning in caught)
    first, second = result.warnings
    assert first.startswith("N=9 < 10·d=100; bias ≳ ")
    assert second.startswith("error: N=9 < d=10: ")


# Streaming


def streamed(rows, bounds):
    stats = FrechetStats(rows.shape[1])
    for start, stop in zip([0, *bounds], [*bounds, len(rows)], strict=True):
        stats.update(rows[start:stop])
    return stats


@pytest.mark.parametrize("bounds", [[], [1], [0, 50, 50, 120], [*range(10, 300, 10)]])
def test_any_split_into_batches_gives_the_same(bounds):
    rows = correlated(300, 16, 0) + 1e3
    stats = streamed(rows, bounds)
    np.testing.assert_allclose(stats.mean, rows.mean(0), rtol=1e-12)
    np.testing.assert_allclose(stats.cov, np.cov(rows, rowvar=False), rtol=0, atol=1e-10)
    assert stats.n == 300
    np.testing.assert_array_equal(stats.features, rows)
    other = correlated(300, 16, 1) + 1e3
    assert value(stats, other) == near(value(rows, other), 1e-10)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_any_order_of_merging_gives_the_same(order):
    rows = correlated(300, 16, 0) + 1e3
    parts = [FrechetStats.from_features(part) for part in (rows[:7], rows[7:7], rows[7:])]
    merged = FrechetStats(16)
    for index in order:
        merged.merge(parts[index])
    assert merged.n == 300
    np.testing.assert_allclose(merged.mean, rows.mean(0), rtol=1e-12)
    np.testing.assert_allclose(merged.cov, np.cov(rows, rowvar=False), rtol=0, atol=1e-10)
    assert [part.n for part in parts] == [7, 0, 293]


def test_a_buffer_may_be_used_again():
    rows, buffer = correlated(60, 3, 0), np.zeros((20, 3))
    stats = FrechetStats(3)
    for start in range(0, 60, 20):
        buffer[:] = rows[start : start + 20]
        stats.update(buffer)
    np.testing.assert_array_equal(stats.features, rows)


def test_features_are_kept_only_while_they_are_few(monkeypatch):
    monkeypatch.setattr("gendiff.metrics.frechet_stats.KEPT_NUMBERS", 100)
    stats = FrechetStats(10).update(normal(10, 10, 0))
    assert stats.features is not None
    stats.update(normal(1, 10, 1))
    assert stats.features is None
    assert FrechetStats(10).merge(stats).features is None
    with pytest.raises(InvalidInputError, match="needs the features of a, which were not kept"):
        frechet_distance(stats, stats, route="features")


# Bad input


def test_numbers_that_are_not_finite_are_named():
    rows = normal(8, 3, 0)
    rows[5, 1] = np.nan
    rows[6, 0] = np.inf
    stats = FrechetStats(3).update(normal(4, 3, 1))
    with pytest.raises(InvalidInputError, match=r"a must be finite: row 5, column 1 is nan \(2 of 8 rows"):
        frechet_distance(rows, normal(8, 3, 0))
    with pytest.raises(InvalidInputError, match="features must be finite: row 9, column 1 is nan"):
        stats.update(rows)
    assert stats.n == 4


def test_numbers_whose_squares_overflow():
    """They are finite, though their sum is not; nothing can be computed from them."""
    huge = np.full((2, 3), 1e308) * [[1], [-1]]
    with pytest.raises(InvalidInputError, match="b holds numbers whose squares overflow"):
        frechet_distance(normal(5, 3, 0), huge)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (normal(5, 3, 0), normal(5, 4, 0), "a has features of 3 dimensions, b of 4"),
        (normal(1, 3, 0), normal(5, 3, 0), "a must hold at least 2 images, got 1"),
        (normal(5, 3, 0), FrechetStats(3), "b must hold at least 2 images, got 0"),
        (normal(5, 3, 0)[0], normal(5, 3, 0), r"a must have shape \(N, d\), got \(3,\)"),
        (np.zeros((5, 3), dtype=complex), normal(5, 3, 0), "a must be real numbers, got complex128"),
        (torch.zeros(5, 3, dtype=torch.bool), normal(5, 3, 0), "a must be real numbers, got torch.bool"),
        ([[1.0]], normal(5, 3, 0), r"a must be an array or tensor \(N, d\), got list"),
        (moments([0, 0], np.diag([1.0, -1.0])), moments([0, 0], np.eye(2)), "a has no covariance: .* eigenvalue -1"),
    ],
)
def test_bad_input(a, b, message):
    with pytest.raises(InvalidInputError, match=message):
        frechet_distance(a, b)


def test_bad_arguments():
    with pytest.raises(InvalidInputError, match="route must be auto, features or statistics, got 'sqrtm'"):
        frechet_distance(normal(5, 3, 0), normal(5, 3, 1), route="sqrtm")
    with pytest.raises(InvalidInputError, match="dim must be a whole number of at least 1, got 0"):
        FrechetStats(0)
    with pytest.raises(InvalidInputError, match="the statistics has features of 3 dimensions, features of 4"):
        FrechetStats(3).update(normal(5, 4, 0))


def test_statistics_of_a_file_cannot_grow():
    stats = moments([0, 0], np.eye(2), 10)
    with pytest.raises(InvalidInputError, match="not added to"):
        stats.update(normal(5, 2, 0))
    with pytest.raises(InvalidInputError, match="not added to"):
        FrechetStats(2).merge(stats)


@pytest.mark.parametrize(
    ("mean", "cov", "message"),
    [
        ([0, 0], np.eye(3), r"mean must have shape \(d,\) and cov \(d, d\), got \(2,\) and \(3, 3\)"),
        ([0, 0], [[1, 0.5], [0, 1]], "cov must be symmetric, but entries differ from their mirror by 0.5"),
        ([0, np.nan], np.eye(2), "mean must be finite"),
    ],
)
def test_moments_that_do_not_fit(mean, cov, message):
    with pytest.raises(InvalidInputError, match=message):
        moments(mean, cov)


def test_nothing_has_no_mean_and_one_image_no_covariance():
    with pytest.raises(InvalidInputError, match="the mean needs at least 1 image, got 0"):
        _ = FrechetStats(3).mean
    with pytest.raises(InvalidInputError, match="a covariance needs at least 2 images, got 1"):
        _ = FrechetStats(3).update(normal(1, 3, 0)).cov
