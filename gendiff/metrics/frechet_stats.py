"""Mean and covariance of features that arrive in batches, on one process or several.

Sums are float64 and taken after subtracting an offset, the mean of the first batch: plain sums of x and x xᵀ lose all
digits that the mean has in common (7e-8 relative error under a shift of 1e4; with the offset 1e-11).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gendiff.errors import InvalidInputError
from gendiff.metrics.rows import Features, check_dims, feature_rows, whole_number

if TYPE_CHECKING:
    from accelerate import Accelerator, PartialState

KEPT_NUMBERS = 200_000_000
"""Features are kept as long as N d is at most this, 1.6 GB."""
CHUNK = 4096
"""Rows summed at once, so that a large array is never copied whole."""


class FrechetStats:
    """Count, mean and covariance of features, and the features themselves while they are few.

    Features are kept because a covariance of fewer images than dimensions has lost digits that they still have.

    Args:
        dim: width d of the features.

    Raises:
        InvalidInputError: `dim` is not a whole number of at least 1.
    """

    def __init__(self, dim: int) -> None:
        self.dim = whole_number("dim", dim, 1)
        self.n: int | None = 0
        self._offset = torch.zeros(self.dim, dtype=torch.float64)
        self._sum = torch.zeros(self.dim, dtype=torch.float64)
        self._square = torch.zeros(self.dim, self.dim, dtype=torch.float64)
        self._moments: tuple[np.ndarray, np.ndarray] | None = None
        self._rows: list[np.ndarray] | None = []

    @classmethod
    def from_features(cls, features: Features, name: str = "features") -> FrechetStats:
        """Statistics of one array (N, d); it is referred to, not copied.

        Raises:
            InvalidInputError: not finite real numbers of shape (N, d).
        """
        rows = feature_rows(name, features)
        stats = cls(rows.shape[1])
        stats._add(rows)
        return stats

    @classmethod
    def from_moments(cls, mean: Features, cov: Features, n: int | None = None) -> FrechetStats:
        """Statistics as a file holds them; they can be compared, but no longer updated or merged.

        Args:
            mean: (d,).
            cov: (d, d), unbiased (divided by N - 1).
            n: images behind them, None if unknown.

        Raises:
            InvalidInputError: shapes that do not fit, numbers that are not finite, or `cov` is not symmetric.
        """
        mean_row = feature_rows("mean", mean[None] if mean.ndim == 1 else mean)
        square = feature_rows("cov", cov)
        dim = mean_row.shape[1]
        if mean_row.shape != (1, dim) or square.shape != (dim, dim):
            raise InvalidInputError(
                f"mean must have shape (d,) and cov (d, d), got {tuple(mean.shape)} and {tuple(cov.shape)}."
            )
        asymmetry = np.abs(square - square.T).max()
        if asymmetry > 1e-4 * np.abs(square).max():
            raise InvalidInputError(f"cov must be symmetric, but entries differ from their mirror by {asymmetry:.3g}.")
        stats = cls(dim)
        stats.n = None if n is None else whole_number("n", n, 2)
        stats._rows, stats._moments = None, (mean_row[0].copy(), (square + square.T) / 2)
        return stats

    def update(self, features: Features) -> FrechetStats:
        """Add a batch (B, d); B may be 0. Returns itself.

        Raises:
            InvalidInputError: another width, NaN or infinity, or statistics that came from moments.
        """
        n = self._open()
        rows = feature_rows("features", features, first=n)
        check_dims(("the statistics", "features"), self.dim, rows.shape[1])
        self._add(rows.copy())  # the caller may use its buffer again
        return self

    def merge(self, other: FrechetStats) -> FrechetStats:
        """Add all that `other` has seen; `other` stays as it is. Returns itself.

        Raises:
            InvalidInputError: another width, or statistics that came from moments.
        """
        n, count = self._open(), other._open()
        check_dims(("the statistics", "other"), self.dim, other.dim)
        if n == 0:
            self._offset = other._offset.clone()
        total, square = other._sums_about(self._offset)
        self._sum += total
        self._square += square
        self._rows = None if self._rows is None or other._rows is None else [*self._rows, *other._rows]
        self._count(n + count)
        return self

    def all_reduce(self, state: Accelerator | PartialState) -> FrechetStats:
        """Merge the statistics of all processes; afterwards each has the whole. Every process must call it.

        A process may have seen nothing. All take over the offset of the first that has seen something, so what is
        exchanged afterwards are plain sums.

        Args:
            state: what knows the processes.

        Returns:
            Itself.

        Raises:
            InvalidInputError: statistics that came from moments.
        """
        n = self._open()
        if state.num_processes == 1:
            return self
        from accelerate.utils import gather, pad_across_processes, reduce

        def shared(values: torch.Tensor) -> torch.Tensor:
            return gather(values.to(state.device)).cpu()  # pyright: ignore[reportAttributeAccessIssue]

        head = torch.tensor([[float(n), float(self._rows is not None)]], dtype=torch.float64)
        heads = shared(torch.cat([head, self._offset[None]], dim=1))
        counts = heads[:, 0].long()
        if not counts.any():
            return self
        offset = heads[int(counts.nonzero()[0]), 2:].clone()
        total, square = self._sums_about(offset)
        sums = reduce(torch.cat([total[None], square]).to(state.device), "sum").cpu()  # pyright: ignore
        rows = None
        if heads[:, 1].all() and int(counts.sum()) * self.dim <= KEPT_NUMBERS:
            own = torch.from_numpy(self.features if n else np.zeros((0, self.dim)))
            padded = shared(pad_across_processes(own.to(state.device), dim=0))  # pyright: ignore[reportArgumentType]
            parts = padded.reshape(state.num_processes, -1, self.dim)
            rows = [part[:count].numpy() for part, count in zip(parts, counts.tolist(), strict=True) if count]
        self._offset, self._sum, self._square, self._rows = offset, sums[0].clone(), sums[1:].clone(), rows
        self._count(int(counts.sum()))
        return self

    @property
    def mean(self) -> np.ndarray:
        """(d,), float64.

        Raises:
            InvalidInputError: nothing has been seen.
        """
        if self._moments is not None:
            return self._moments[0]
        if not self.n:
            raise InvalidInputError("the mean needs at least 1 image, got 0.")
        return (self._offset + self._sum / self.n).numpy()

    @property
    def cov(self) -> np.ndarray:
        """(d, d), float64, symmetric, divided by N - 1.

        Raises:
            InvalidInputError: fewer than two images have been seen.
        """
        if self._moments is not None:
            return self._moments[1]
        if self.n is None or self.n < 2:
            raise InvalidInputError(f"a covariance needs at least 2 images, got {self.n}.")
        cov = (self._square - torch.outer(self._sum, self._sum) / self.n) / (self.n - 1)
        return ((cov + cov.T) / 2).numpy()

    @property
    def finite(self) -> bool:
        """Whether no sum of squares has overflowed."""
        return self._moments is not None or bool(self._square.isfinite().all())

    @property
    def features(self) -> np.ndarray | None:
        """All rows (N, d) in the order they came, by process after `all_reduce`; None where they were not kept."""
        if not self._rows:
            return None
        if len(self._rows) > 1:
            self._rows = [np.concatenate(self._rows)]
        return self._rows[0]

    def save(self, path: str | Path, **provenance: Any) -> None:
        """Write them with their provenance; see `gendiff.metrics.reference_stats.save_reference`."""
        from gendiff.metrics.reference_stats import save_reference

        save_reference(path, self, **provenance)

    @classmethod
    def load(cls, path: str | Path) -> FrechetStats:
        """Read what `save` or edm, pytorch-fid or clean-fid wrote; see `reference_stats.load_reference`."""
        from gendiff.metrics.reference_stats import load_reference

        return load_reference(path).stats

    def _open(self) -> int:
        """How many images were seen; raises where sums are not known."""
        if self._moments is not None or self.n is None:
            raise InvalidInputError("statistics made from a mean and a covariance can be compared, not added to.")
        return self.n

    def _add(self, rows: np.ndarray) -> None:
        n = self._open()
        if len(rows) == 0:
            return
        if n == 0:
            self._offset = torch.from_numpy(rows[:CHUNK].mean(axis=0))
        for start in range(0, len(rows), CHUNK):
            centred = torch.from_numpy(rows[start : start + CHUNK] - self._offset.numpy())
            self._sum += centred.sum(dim=0)
            self._square += centred.T @ centred
        if self._rows is not None:
            self._rows.append(rows)
        self._count(n + len(rows))

    def _count(self, n: int) -> None:
        self.n = n
        if n * self.dim > KEPT_NUMBERS:
            self._rows = None

    def _sums_about(self, offset: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Sums of x - offset and of its outer product; little is lost where both offsets lie among the features."""
        shift, n = self._offset - offset, self._open()
        cross = torch.outer(self._sum, shift)
        return self._sum + n * shift, self._square + cross + cross.T + n * torch.outer(shift, shift)
