"""A row cache that also remembers what adaptive norms make of the condition, which no pass changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gendiff.nn.row_cache import RowCache


class ModulatedRowCache(RowCache):
    """`RowCache` and the modulations of one condition; arguments as of `RowCache`."""

    _labels: Tensor | None = None
    _modulations: tuple[Tensor, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes held now."""
        return super().nbytes + sum(part.nbytes for part in self._modulations)

    def modulations(self, labels: Tensor, make: Callable[[], Sequence[Tensor]]) -> Sequence[Tensor]:
        """What `make` gives; it is called once for as long as the labels stay the same.

        Args:
            labels: (B,) what the modulations are a function of, weights apart.
            make: computes them.
        """
        known = self._labels is not None and (labels is self._labels or torch.equal(labels, self._labels))
        if not known:
            self._labels, self._modulations = labels.clone(), tuple(make())
        return self._modulations
