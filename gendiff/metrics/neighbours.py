"""Precision, recall, density and coverage: is a sample where real images are, and are real images where samples are?

"Where" is the union of balls about the images of one set, each as wide as the distance to its k-th nearest neighbour in
that set. Values of different k or N cannot be compared. Distances are taken block by block, so 50,000 against 10,000
images need no more memory than their features and a few blocks.

Sources: Kynkäänniemi et al. 2019, "Improved precision and recall metric for assessing generative models" (NeurIPS);
Naeem et al. 2020, "Reliable fidelity and diversity metrics for generative models" (ICML), for density and coverage.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from gendiff.errors import InvalidInputError
from gendiff.metrics.rows import Features, two_feature_sets, whole_number

ROUNDING = 1e-13
"""Squared distances below this share of the squared lengths are rounding: two equal rows are at distance 0."""


@dataclass(frozen=True)
class PRDC:
    """Four shares and what they depend on.

    Attributes:
        precision: share of samples inside the real set's balls.
        recall: share of real images inside the samples' balls.
        density: balls of the real set that a sample is in, over k, mean over samples; may exceed 1.
        coverage: share of real images whose ball holds a sample.
        k: which neighbour makes the radius.
        n_real, n_fake: images on each side.
    """

    precision: float
    recall: float
    density: float
    coverage: float
    k: int
    n_real: int
    n_fake: int


def prdc(real: Features, fake: Features, k: int = 3, block: int = 2048) -> PRDC:
    """Precision, recall, density and coverage. Balls are closed: a point on the rim is inside.

    Args:
        real, fake: features (N, d).
        k: neighbours, without the image itself.
        block: rows of each side whose distances are in memory at once; it does not change the result.

    Raises:
        InvalidInputError: features that cannot be used, or `k` not below both N.
    """
    rows = two_feature_sets(("real", "fake"), real, fake)
    whole_number("k", k, 1)
    whole_number("block", block, 1)
    for name, side in zip(("real", "fake"), rows, strict=True):
        if k >= len(side):
            raise InvalidInputError(f"k={k} must be below the {len(side)} images of {name}: give more, or a smaller k.")
    centre = rows[0].mean(axis=0)  # distances do not change, but keep more digits near 0
    x, y = (torch.from_numpy(side - centre) for side in rows)
    x_radii, y_radii = _squared_radii(x, k, block), _squared_radii(y, k, block)
    precise, dense = torch.zeros(len(y), dtype=torch.bool), torch.zeros(len(y), dtype=torch.int64)
    recalled, covered = torch.zeros(len(x), dtype=torch.bool), torch.zeros(len(x), dtype=torch.bool)
    for i in _blocks(len(x), block):
        for j in _blocks(len(y), block):
            distances = _squared_distances(x[i], y[j])
            in_real = distances <= x_radii[i, None]
            dense[j] += in_real.sum(dim=0)
            precise[j] |= in_real.any(dim=0)
            covered[i] |= in_real.any(dim=1)
            recalled[i] |= (distances <= y_radii[j]).any(dim=1)
    shares = (values.double().mean().item() for values in (precise, recalled, dense.double() / k, covered))
    return PRDC(*shares, k=k, n_real=len(x), n_fake=len(y))


def _squared_radii(x: Tensor, k: int, block: int) -> Tensor:
    """Squared distance of each row to its k-th nearest other row, (N,)."""
    nearest = torch.full((len(x), k), torch.inf, dtype=x.dtype)

    def keep(part: slice, distances: Tensor) -> None:
        candidates = torch.cat([nearest[part], distances], dim=1)
        nearest[part] = candidates.topk(k, dim=1, largest=False).values

    for i in _blocks(len(x), block):
        for j in _blocks(i.stop, block):  # each pair of blocks once
            distances = _squared_distances(x[i], x[j])
            if i == j:
                keep(i, distances.fill_diagonal_(torch.inf))
            else:
                keep(i, distances)
                keep(j, distances.T)
    return nearest.max(dim=1).values


def _squared_distances(x: Tensor, y: Tensor) -> Tensor:
    lengths = x.square().sum(dim=1)[:, None] + y.square().sum(dim=1)
    distances = torch.addmm(lengths, x, y.T, alpha=-2)
    return distances.masked_fill_(distances < ROUNDING * lengths, 0)


def _blocks(count: int, block: int) -> Iterator[slice]:
    return (slice(start, min(start + block, count)) for start in range(0, count, block))
