"""Fréchet distance of infinitely many images, extrapolated from what it is of fewer and fewer.

The distance of N images is too large by about c/N. Here both sides are cut to the same n, so that all of c is seen, and
the distance is fitted by a line in 1/n, whose intercept is the answer. Source: Chong and Forsyth 2020, "Effectively
unbiased FID and Inception score and where to find them" (CVPR), who cut one side only and keep the bias of the other.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np

from gendiff.errors import InvalidInputError, MetricWarning
from gendiff.metrics.frechet import frechet_distance
from gendiff.metrics.rows import Features, two_feature_sets, whole_number

SMALLEST = 5000
"""Images of the smallest size, where a tenth of all is more."""
FEW_FOR_A_LINE = 2
"""Images a dimension below which the distance is far from linear in 1/n."""


@dataclass(frozen=True)
class FDInfinityResult:
    """The intercept and the line behind it.

    Attributes:
        value: distance at 1/n = 0; of equal distributions it scatters about 0 and may be negative.
        r2: share of the variance that the line explains, at most 1; 1 where there is no variance.
        sizes: images on each side, rising.
        distances: Fréchet distance at each size.
        warnings: why the value is hard to trust, one line each.
    """

    value: float
    r2: float
    sizes: tuple[int, ...]
    distances: tuple[float, ...]
    warnings: tuple[str, ...] = ()


def fd_infinity(fa: Features, fb: Features, points: int = 15, seed: int = 0, *, warn: bool = True) -> FDInfinityResult:
    """FD∞ of two sets of features.

    Args:
        fa, fb: (N, d). The larger is cut to the size of the smaller.
        points: sizes, evenly from min(5000, N/10) to N.
        seed: of the images drawn, anew for each size and side.
        warn: issue `MetricWarning` for each of the result's warnings.

    Raises:
        InvalidInputError: features that cannot be used, or fewer images than 10 or than points.
    """
    whole_number("points", points, 2)
    rows = two_feature_sets(("fa", "fb"), fa, fb)
    count, dim = min(map(len, rows)), rows[0].shape[1]
    smallest = max(2, min(SMALLEST, count // 10))
    sizes = np.linspace(smallest, count, points).round().astype(int)
    if count < 10 or len(set(sizes)) < points:
        raise InvalidInputError(f"points={points} sizes need more images than {count}: give more, or fewer points.")
    rng = np.random.default_rng(whole_number("seed", seed, 0))
    distances = [_distance(rows, size, rng) for size in sizes]
    value, r2 = _intercept(1 / sizes, np.array(distances))
    notes: tuple[str, ...] = ()
    if smallest < FEW_FOR_A_LINE * dim:
        notes = (f"FD∞: the smallest size {smallest} < {FEW_FOR_A_LINE}·d={FEW_FOR_A_LINE * dim}, where FD is not "
                 f"linear in 1/N (R²={r2:.3f}); give more images or features of fewer dimensions",)  # fmt: skip
    if warn:
        for note in notes:
            warnings.warn(note, MetricWarning, stacklevel=2)
    return FDInfinityResult(value, r2, tuple(sizes.tolist()), tuple(distances), notes)


def _distance(rows: tuple[np.ndarray, np.ndarray], size: int, rng: np.random.Generator) -> float:
    drawn = [side[rng.choice(len(side), size, replace=False)] for side in rows]
    return frechet_distance(drawn[0], drawn[1], warn=False).value


def _intercept(inverse: np.ndarray, distances: np.ndarray) -> tuple[float, float]:
    """Intercept and R² of the least-squares line."""
    centred, deviations = inverse - inverse.mean(), distances - distances.mean()
    slope = (centred @ deviations) / (centred @ centred)
    variance = float(deviations @ deviations)
    r2 = 1.0 if variance == 0 else 1 - float(np.square(deviations - slope * centred).sum()) / variance
    return float(distances.mean() - slope * inverse.mean()), r2
