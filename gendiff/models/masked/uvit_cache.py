"""What ReCAP remembers of a `UVit2DModel`: its transformer's keys, values and output, and what the text gives."""

from __future__ import annotations

from typing import final

import torch
from diffusers import UVit2DModel
from torch import Tensor

from gendiff.models.masked.text_condition import TextCondition
from gendiff.models.masked.uvit_constants import UVitConstants, uvit_constants
from gendiff.nn.row_cache import Layout, RowCache


@final
class UVitCache(RowCache):
    """A `RowCache` over the cells of the transformer's grid, with no prefix rows, and two things more.

    The transformer's output of all cells: a light pass puts its cells among them, because the convolutions after it
    read all. And what the network makes of the text, which full passes need not compute again either.

    Args:
        num_layers: of the transformer.
        num_rows: cells of its grid.
        recompute_prefix: says nothing here, as there is no prefix.
        layout: see `RowCache`.
        dtype: of keys and values; None for theirs.
    """

    def __init__(
        self,
        num_layers: int,
        num_rows: int,
        recompute_prefix: bool = True,
        layout: Layout = "in_place",
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_layers, num_rows, 0, recompute_prefix, layout, dtype)
        self._num_rows = num_rows
        self._output: Tensor | None = None
        self._condition: TextCondition | None = None
        self._constants: UVitConstants | None = None

    @property
    def nbytes(self) -> int:
        """Bytes held now."""
        output = 0 if self._output is None else self._output.nbytes
        return super().nbytes + output + (0 if self._constants is None else self._constants.nbytes)

    @property
    def cost_key(self) -> tuple[int, bool, bool]:  # type: ignore[override]
        """What the cost of a pass with this cache depends on; the first pass of a walk computes the text as well."""
        return (*super().cost_key, self._constants is not None)

    def constants(self, model: UVit2DModel, condition: TextCondition) -> UVitConstants:
        """What the text gives, computed when it is first asked for, and for another condition anew."""
        if self._constants is None or self._condition is not condition:
            self._constants, self._condition = uvit_constants(model, condition), condition
        return self._constants

    def merged(self, output: Tensor, rows: Tensor | None) -> Tensor:
        """The transformer's output of all cells.

        Args:
            output: (B, R, C), of all cells or of `rows`; it is kept.
            rows: (B, R) from `key_rows`, -1 = padding; None in a full pass.

        Returns: (B, cells, C); never to be written to.

        Raises:
            ValueError: rows without a full pass before.
        """
        if rows is not None:
            if self._output is None:
                raise ValueError("rows need a cache that a full pass has filled.")
            sample, entry = (rows >= 0).nonzero(as_tuple=True)
            output = self._output.index_put((sample, rows[sample, entry]), output[sample, entry])
        self._output = output
        return output
