"""Fréchet distance between two Gaussians fitted to features: ‖μa-μb‖² + tr Σa + tr Σb - 2 tr (Σa Σb)^{1/2}.

It is the squared distance; no root is taken. With any factor F of a covariance, Σ = Fᵀ F, the last trace is the nuclear
norm (sum of singular values) of Fa Fbᵀ. That is exact to rounding where eigenvalues of Σa Σb lose half of their digits.
Only the factor differs between the routes:

- features: F = (x - μ)/√(N-1), (N, d), taken when N < d and features are there. A covariance of rank below d has lost
  digits that the features still have. For N ≥ d, when this route is asked for, F is the R of their QR decomposition.
- statistics: F is the Cholesky factor of Σ; where Σ is singular, its eigenvectors times the roots of its eigenvalues,
  without those that are rounding noise. Nothing is ever added to the diagonal.

Sources: Dowson and Landau 1982, "The Fréchet distance between multivariate normal distributions"; Heusel et al. 2017,
"GANs trained by a two time-scale update rule" (NeurIPS), for FID.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from gendiff.errors import InvalidInputError, MetricWarning
from gendiff.metrics.frechet_bias import small_sample_notes
from gendiff.metrics.frechet_stats import FrechetStats
from gendiff.metrics.rows import Features, check_dims

__all__ = ["FrechetResult", "FrechetStats", "frechet_distance"]

Route: TypeAlias = Literal["auto", "features", "statistics"]
ROUNDING = 1e-6
"""A result below zero by less than this share of the traces is zero."""
NO_ERROR = 1e-12
"""An error below this share of the traces does not count."""
NOT_A_COVARIANCE = 1e-3
"""An eigenvalue below zero by more than this share of the largest is no rounding, not even of float32."""


@dataclass(frozen=True)
class FrechetResult:
    """A Fréchet distance and how it came about.

    Attributes:
        value: mean_term + cov_term.
        mean_term: squared distance of the means.
        cov_term: squared Bures distance of the covariances.
        n_a, n_b: images on each side, None where a file of statistics does not say.
        route: "features", "statistics", or "mixed" where the sides differ.
        warnings: why the value is hard to trust, one line each; empty if nothing is known against it.
    """

    value: float
    mean_term: float
    cov_term: float
    n_a: int | None
    n_b: int | None
    route: str
    warnings: tuple[str, ...] = ()


def frechet_distance(
    a: FrechetStats | Features, b: FrechetStats | Features, *, route: Route = "auto", warn: bool = True
) -> FrechetResult:
    """Squared Fréchet distance between Gaussians fitted to two sets of features.

    Args:
        a, b: statistics, or features (N, d).
        route: "features" or "statistics" on both sides; "auto" takes features where N < d and they are there.
        warn: issue `MetricWarning` for each of the result's warnings.

    Raises:
        InvalidInputError: fewer than two images, different widths, NaN or infinity, features asked for that are not
            there, a matrix that is no covariance, or a distance below zero by more than rounding.
    """
    if route not in ("auto", "features", "statistics"):
        raise InvalidInputError(f"route must be auto, features or statistics, got {route!r}.")
    sides = first, second = _statistics("a", a), _statistics("b", b)
    check_dims(("a", "b"), first.dim, second.dim)
    by_rows = [_takes_features(name, stats, route) for name, stats in zip("ab", sides, strict=True)]
    factors = [_factor(name, stats, rows) for name, stats, rows in zip("ab", sides, by_rows, strict=True)]
    traces = sum(float(factor.square().sum()) for factor in factors)
    cross = _nuclear_norm(factors[0] @ factors[1].T, traces)
    mean_term = float(np.square(first.mean - second.mean).sum())
    cov_term = traces - 2 * cross
    if cov_term < -ROUNDING * traces:
        raise InvalidInputError(f"the distance of the covariances is {cov_term:.3g} < 0: they are not covariances.")
    cov_term = max(cov_term, 0.0)
    notes = small_sample_notes((first.n, second.n), first.dim, lambda side: _spectrum(factors[side], sides[side]))
    if warn:
        for note in notes:
            warnings.warn(note, MetricWarning, stacklevel=2)
    name = "features" if all(by_rows) else "mixed" if any(by_rows) else "statistics"
    return FrechetResult(mean_term + cov_term, mean_term, cov_term, first.n, second.n, name, notes)


def _statistics(name: str, given: FrechetStats | Features) -> FrechetStats:
    stats = given if isinstance(given, FrechetStats) else FrechetStats.from_features(given, name)
    if stats.n is not None and stats.n < 2:
        raise InvalidInputError(f"{name} must hold at least 2 images, got {stats.n}.")
    if not stats.finite:
        raise InvalidInputError(f"{name} holds numbers whose squares overflow float64.")
    return stats


def _takes_features(name: str, stats: FrechetStats, route: Route) -> bool:
    there = stats.features is not None
    if route == "features" and not there:
        raise InvalidInputError(f"route='features' needs the features of {name}, which were not kept.")
    return route == "features" or (route == "auto" and there and stats.n is not None and stats.n < stats.dim)


def _factor(name: str, stats: FrechetStats, from_features: bool) -> Tensor:
    """F (r, d) with FᵀF = Σ, float64."""
    if from_features and stats.features is not None and stats.n is not None:
        centred = torch.from_numpy((stats.features - stats.mean) / (stats.n - 1) ** 0.5)
        return centred if len(centred) <= stats.dim else torch.linalg.qr(centred, mode="r").R
    cov = torch.from_numpy(stats.cov)
    if stats.n is None or stats.n > stats.dim:
        lower, failed = torch.linalg.cholesky_ex(cov)
        pivots = lower.diagonal().square()
        if not failed and pivots.min() > _noise(stats.dim) * pivots.max():
            return lower.T
    return _singular_factor(name, cov, stats.n)


def _singular_factor(name: str, cov: Tensor, n: int | None) -> Tensor:
    """The factor of a covariance without full rank, which is at most n - 1; other eigenvalues are noise of zero."""
    values, vectors = torch.linalg.eigh(cov)
    largest = values.abs().max()
    if values[0] < -NOT_A_COVARIANCE * largest:
        raise InvalidInputError(
            f"{name} has no covariance: its matrix has the eigenvalue {values[0]:.3g}, the largest is {values[-1]:.3g}."
        )
    keep = values > _noise(len(values)) * largest
    if n is not None and n <= len(values):
        keep[: len(values) - (n - 1)] = False
    return values[keep].sqrt()[:, None] * vectors[:, keep].T


def _nuclear_norm(product: Tensor, traces: float) -> float:
    """Sum of singular values of Fa Fbᵀ.

    Eigenvalues of the square are several times cheaper and known to ε λmax, their roots to ε λmax / (2 √λ). They are
    taken where these errors together do not count.
    """
    dim = len(product)
    if dim == 0:  # features without any variance
        return 0.0
    if product.shape == (dim, dim):
        squares = torch.linalg.eigvalsh(product @ product.T)
        noise = torch.finfo(product.dtype).eps * dim**0.5 * squares[-1]
        if squares[0] > noise and float((noise / (2 * squares.sqrt())).sum()) < NO_ERROR * traces:
            return float(squares.sqrt().sum())
    return float(torch.linalg.svdvals(product).sum())


def _spectrum(factor: Tensor, stats: FrechetStats) -> Tensor:
    """Eigenvalues of the covariance, those that are above 0."""
    gram = factor @ factor.T if len(factor) < stats.dim else torch.from_numpy(stats.cov)
    values = torch.linalg.eigvalsh(gram)
    return values[values > 0]


def _noise(dim: int) -> float:
    """Share of the largest eigenvalue below which float64 cannot tell one from zero."""
    return dim * torch.finfo(torch.float64).eps
