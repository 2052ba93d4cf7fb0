"""What a transformer over image tokens remembers between a full pass and light ones: keys and values of all rows."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from gendiff.nn.kv_cache import ScatterKVCache

Layout = Literal["in_place", "concat"]


class RowCache:
    """Keys and values of P + N rows: P prefix rows (class, registers), then one row for each image token.

    A full pass (`rows` None) writes all rows. A light pass computes some of them, overwrites those and reads all, so
    the others stay as the full pass left them: they are the context that is used again (ReCAP).

    Args:
        num_layers: attention layers.
        num_rows: P + N.
        num_prefix_rows: P.
        recompute_prefix: light passes compute the prefix rows as well.
        layout: "in_place" overwrites rows where they lie; "concat" leaves them and reads the other rows followed by
            the fresh ones. Attention does not mind the order of keys, so both say the same up to rounding.
        dtype: to keep keys and values in; None for theirs.

    Source: Liu et al. 2025 (ReCAP, arXiv 2505.19089).
    """

    def __init__(
        self,
        num_layers: int,
        num_rows: int,
        num_prefix_rows: int = 0,
        recompute_prefix: bool = True,
        layout: Layout = "in_place",
        dtype: torch.dtype | None = None,
    ) -> None:
        self.keys_values = ScatterKVCache(num_layers, num_rows)
        self.num_prefix_rows = num_prefix_rows
        self.recompute_prefix = recompute_prefix
        self._layout, self._dtype = layout, dtype
        self._kept: tuple[Tensor, Tensor] | None = None  # rows as given, and the rows a concat layout keeps

    @property
    def nbytes(self) -> int:
        """Bytes held now."""
        return self.keys_values.nbytes

    @property
    def cost_key(self) -> tuple[int, bool]:
        """What the cost of a pass with this cache depends on."""
        return self.keys_values.length, self.recompute_prefix

    def begin(self) -> None:
        """Forget all rows, keep their memory: the next pass is a full one."""
        self.keys_values.reset()

    def key_rows(self, rows: Tensor) -> Tensor:
        """Rows of keys that a light pass overwrites: (B, P' + m) from image positions (B, m), -1 = padding.

        P' is P, or 0 where the prefix is not computed again.
        """
        shifted = torch.where(rows >= 0, rows + self.num_prefix_rows, rows)
        if not self.recompute_prefix or not self.num_prefix_rows:
            return shifted
        prefix = torch.arange(self.num_prefix_rows, device=rows.device)
        return torch.cat([prefix.expand(len(rows), -1), shifted], dim=1)

    def update(self, layer: int, k: Tensor, v: Tensor, rows: Tensor | None) -> tuple[Tensor, Tensor]:
        """Write a layer's keys and values and return all that it may read.

        Args:
            layer: in order within a pass.
            k: keys (B, H, R, d): of all rows, or of `rows`.
            v: values, like `k`.
            rows: (B, R) from `key_rows`, one tensor for all layers; None in a full pass.

        Returns: keys and values (B, H, P + N, d), in the dtype of `k`.
        """
        computed = k.dtype
        if self._dtype is not None:
            k, v = k.to(self._dtype), v.to(self._dtype)
        if rows is None:
            k, v = self.keys_values.append(layer, k, v)
        elif self._layout == "in_place":
            k, v = self.keys_values.scatter(layer, rows, k, v)
        else:
            k, v = self._joined(layer, k, v, rows)
        return k.to(computed), v.to(computed)

    def commit(self) -> None:
        """Keep what the pass wrote."""
        self.keys_values.commit()

    def rollback(self) -> None:
        """Drop what the pass wrote, after it failed."""
        self.keys_values.rollback()

    def _joined(self, layer: int, k: Tensor, v: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        if self._kept is None or self._kept[0] is not rows:
            self._kept = (rows, self._others(rows))
        index = self._kept[1][:, None, :, None]
        old = self.keys_values.read(layer)
        cached = (part.gather(2, index.expand(-1, part.shape[1], -1, part.shape[3])) for part in old)
        k, v = (torch.cat([part, new], dim=2) for part, new in zip(cached, (k, v), strict=True))
        return k, v

    def _others(self, rows: Tensor) -> Tensor:
        """(B, P + N - R): rows that are not among `rows`."""
        length = self.keys_values.length
        if (rows < 0).any():
            raise ValueError("layout 'concat' needs groups of one size in the whole batch; use 'in_place'.")
        if (rows >= length).any():
            raise ValueError(f"rows has {int(rows.max())}, expected 0 .. length - 1 = {length - 1}.")
        others = torch.ones(len(rows), length, dtype=torch.bool, device=rows.device).scatter_(1, rows, False)
        if int(others.sum()) != others.numel() - rows.numel():
            raise ValueError("rows has a row twice in one sample, expected distinct ones.")
        return others.nonzero()[:, 1].view(len(rows), -1)
