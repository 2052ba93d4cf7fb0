"""What an encoder and a decoder of all rows remember between a full pass and light ones (MAGE)."""

from __future__ import annotations

import torch
from torch import Tensor

from gendiff.nn.row_cache import Layout, RowCache


class MAGECache:
    """Of one batch and one condition. Two row caches, as the two stacks may have heads of different width.

    Args:
        layers: of the encoder and of the decoder.
        num_rows: P + N.
        num_prefix_rows: P.
        recompute_prefix: light passes compute the prefix rows as well.
        layout: see `RowCache`.
        dtype: to keep keys and values in; None for theirs.

    Attributes:
        encoder: of all P + N rows.
        decoder: of the same rows.
        class_row: (B, 1, D), what the last pass that computed the class row showed in the place of hidden tokens.

    Source: Liu et al. 2025 (ReCAP, arXiv 2505.19089), who leave MAGE out; the split is of this project.
    """

    def __init__(
        self,
        layers: tuple[int, int],
        num_rows: int,
        num_prefix_rows: int,
        recompute_prefix: bool = True,
        layout: Layout = "in_place",
        dtype: torch.dtype | None = None,
    ) -> None:
        self.encoder, self.decoder = (
            RowCache(count, num_rows, num_prefix_rows, recompute_prefix, layout, dtype) for count in layers
        )
        self.class_row: Tensor | None = None

    @property
    def recompute_prefix(self) -> bool:
        """Whether light passes compute the prefix rows as well."""
        return self.encoder.recompute_prefix

    @property
    def filled(self) -> bool:
        """Whether a full pass has ended."""
        return self.decoder.keys_values.length > 0

    @property
    def nbytes(self) -> int:
        """Bytes held now."""
        row = 0 if self.class_row is None else self.class_row.nbytes
        return self.encoder.nbytes + self.decoder.nbytes + row

    @property
    def cost_key(self) -> tuple[int, bool]:
        """What the cost of a pass with this cache depends on."""
        return self.decoder.cost_key
