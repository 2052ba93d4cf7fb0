"""Distances by kernels: they assume no Gaussian, and are usable where images are few.

Both are a squared maximum mean discrepancy, MMD² = E k(x, x') + E k(y, y') - 2 E k(x, y).

Sources: Bińkowski et al. 2018, "Demystifying MMD GANs" (ICLR), for KID; Jayasumana et al. 2024, "Rethinking FID:
towards a better evaluation metric for image generation" (CVPR), for CMMD.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gendiff.errors import InvalidInputError
from gendiff.metrics.rows import SEEDS, Features, two_feature_sets, whole_number

CMMD_SIGMA = 10.0
CMMD_SCALE = 1000.0
BLOCK = 2048
"""Rows whose kernel with as many others is in memory at once."""


@dataclass(frozen=True)
class KIDResult:
    """KID over subsets. It is usually printed times 1000.

    Attributes:
        mean: may be negative, as an unbiased estimate of something near 0 must be able to.
        std: standard deviation over the subsets (divided by their number); of one subset it is 0 and says nothing.
        subsets, subset_size: as asked.
    """

    mean: float
    std: float
    subsets: int
    subset_size: int


def kid(fa: Features, fb: Features, subsets: int = 100, subset_size: int = 1000, seed: int = 0) -> KIDResult:
    """Kernel inception distance: unbiased MMD² with the kernel (xᵀy/d + 1)³, mean over random subsets.

    Subsets are drawn as torch-fidelity draws them, so that an equal seed gives an equal number.

    Args:
        fa, fb: features (N, d).
        subsets: how many.
        subset_size: rows of each side in one, drawn without replacement.
        seed: of the draws.

    Raises:
        InvalidInputError: features that cannot be used, or `subset_size` above the smaller N.
    """
    first, second = two_feature_sets(("fa", "fb"), fa, fb)
    whole_number("subsets", subsets, 1)
    whole_number("subset_size", subset_size, 2)
    if subset_size > min(len(first), len(second)):
        raise InvalidInputError(
            f"subset_size={subset_size} is more than the images there are, {len(first)} and {len(second)}: "
            f"give subset_size={min(len(first), len(second))} or less, or more images."
        )
    rng = np.random.RandomState(whole_number("seed", seed, 0, SEEDS))
    values = []
    for _ in range(subsets):
        x = first[rng.choice(len(first), subset_size, replace=False)]
        y = second[rng.choice(len(second), subset_size, replace=False)]
        values.append(_unbiased_mmd(x, y))
    return KIDResult(float(np.mean(values)), float(np.std(values)), subsets, subset_size)


def cmmd(fa: Features, fb: Features) -> float:
    """CLIP maximum mean discrepancy: 1000 times the biased MMD² with the kernel exp(-‖x - y‖²/(2·10²)); never negative.

    Args:
        fa, fb: embeddings (N, d); rows are brought to length 1, which those of CLIP already have.

    Raises:
        InvalidInputError: features that cannot be used, or a row of length 0.
    """
    first, second = (
        _unit_rows(name, rows)
        for name, rows in zip(("fa", "fb"), two_feature_sets(("fa", "fb"), fa, fb, least=1), strict=True)
    )
    # The ones in k = 1 + (k - 1) cancel; without them nothing is left to lose digits.
    within = _mean_kernel_less_one(first, first) + _mean_kernel_less_one(second, second)
    return CMMD_SCALE * max(within - 2 * _mean_kernel_less_one(first, second), 0.0)


def _unbiased_mmd(x: np.ndarray, y: np.ndarray) -> float:
    size, dim = x.shape

    def kernel(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        values = first @ second.T / dim + 1
        return values * values * values

    xx, yy = kernel(x, x), kernel(y, y)
    within = xx.sum() - xx.trace() + yy.sum() - yy.trace()
    return float(within / (size * (size - 1)) - 2 * kernel(x, y).mean())


def _unit_rows(name: str, rows: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(rows, axis=1)
    if not lengths.all():
        raise InvalidInputError(f"{name} must have rows of a length above 0, row {int(lengths.argmin())} is all zero.")
    return rows / lengths[:, None]


def _mean_kernel_less_one(x: np.ndarray, y: np.ndarray) -> float:
    """Mean over all pairs of k(x, y) - 1 for rows of length 1, where ‖x - y‖² = 2 - 2 xᵀy."""
    total = 0.0
    for i in range(0, len(x), BLOCK):
        for j in range(0, len(y), BLOCK):
            cosines = x[i : i + BLOCK] @ y[j : j + BLOCK].T
            total += float(np.expm1((cosines - 1) / CMMD_SIGMA**2).sum())
    return total / (len(x) * len(y))
