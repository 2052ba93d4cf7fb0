"""What an encoder of visible tokens and a decoder of all remember between a full pass and light ones (MAR)."""

from __future__ import annotations

import torch
from torch import Tensor

from gendiff.nn.kv_cache import ScatterKVCache
from gendiff.nn.row_cache import Layout, RowCache


class VisibleRowCache:
    """Keys and values of P prefix rows and of the tokens that a full pass could see.

    A light pass adds rows of tokens revealed since, and overwrites the prefix rows if it computes them, for as long as
    it lasts: `rollback` leaves what the full pass wrote. So every light pass stands on the same context.

    Args:
        num_layers: attention layers.
        num_tokens: N.
        num_prefix_rows: P.
        dtype: to keep keys and values in; None for theirs.
    """

    def __init__(
        self, num_layers: int, num_tokens: int, num_prefix_rows: int, dtype: torch.dtype | None = None
    ) -> None:
        self.keys_values = ScatterKVCache(num_layers, num_prefix_rows + num_tokens)
        self._num_layers, self._num_tokens, self._num_prefix_rows = num_layers, num_tokens, num_prefix_rows
        self._dtype = dtype
        self._seen: Tensor | None = None

    def begin(self, visible: int, fewest: int, seen: Tensor | None) -> None:
        """Forget all rows: a full pass comes.

        Args:
            visible: rows of tokens it has, the most of any image.
            fewest: the fewest of any image.
            seen: (B, P + visible) bool, False = padding; None where there is none.
        """
        # One image may lack the room that a shorter one needs for its group.
        capacity = self._num_prefix_rows + visible + self._num_tokens - fewest
        if capacity != self.keys_values.capacity:
            self.keys_values = ScatterKVCache(self._num_layers, capacity)
        self.keys_values.reset()
        self._seen = seen

    def seen(self, new: Tensor | None, count: int) -> Tensor | None:
        """Mask (B, 1, 1, keys) of a light pass that adds `count` rows, `new` (B, count) of them no padding."""
        if self._seen is None and new is None:
            return None
        known = new if self._seen is None else self._seen
        assert known is not None
        old = known.new_ones(len(known), self.keys_values.length) if self._seen is None else self._seen
        new = known.new_ones(len(known), count) if new is None else new
        return torch.cat([old, new], dim=1)[:, None, None]

    def update(self, layer: int, k: Tensor, v: Tensor, rows: Tensor | None) -> tuple[Tensor, Tensor]:
        """Write a layer's keys and values and return all that it may read, as `RowCache.update`.

        Args:
            layer: in order within a pass.
            k: keys (B, H, R, d): in a light pass of the prefix rows that it computes, then of new rows.
            v: values, like `k`.
            rows: (B, P') numbers of those prefix rows; None in a full pass.
        """
        computed = k.dtype
        if self._dtype is not None:
            k, v = k.to(self._dtype), v.to(self._dtype)
        prefix = 0 if rows is None else rows.shape[1]
        if k.shape[2] > prefix:
            old_new = self.keys_values.append(layer, k[:, :, prefix:], v[:, :, prefix:])
        if rows is not None and prefix:
            old_new = self.keys_values.scatter(layer, rows, k[:, :, :prefix], v[:, :, :prefix])
        k, v = old_new  # a pass without any row is not made
        return k.to(computed), v.to(computed)


class MARCache:
    """Of one batch and one condition.

    Args:
        layers: of the encoder and of the decoder.
        num_tokens: N.
        num_prefix_rows: P.
        recompute_prefix: light passes compute the prefix rows as well.
        layout: of the decoder's, see `RowCache`.
        dtype: to keep keys and values in; None for theirs.

    Attributes:
        encoder: of the rows that a full pass could see.
        decoder: of all P + N rows.

    Source: Liu et al. 2025 (ReCAP, arXiv 2505.19089), as applied to MAR.
    """

    def __init__(
        self,
        layers: tuple[int, int],
        num_tokens: int,
        num_prefix_rows: int,
        recompute_prefix: bool = True,
        layout: Layout = "in_place",
        dtype: torch.dtype | None = None,
    ) -> None:
        rows = num_prefix_rows + num_tokens
        self.encoder = VisibleRowCache(layers[0], num_tokens, num_prefix_rows, dtype)
        self.decoder = RowCache(layers[1], rows, num_prefix_rows, recompute_prefix, layout, dtype)

    @property
    def recompute_prefix(self) -> bool:
        """Whether light passes compute the prefix rows as well."""
        return self.decoder.recompute_prefix

    @property
    def filled(self) -> bool:
        """Whether a full pass has ended."""
        return self.decoder.keys_values.length > 0

    @property
    def nbytes(self) -> int:
        """Bytes held now."""
        return self.encoder.keys_values.nbytes + self.decoder.nbytes

    @property
    def cost_key(self) -> tuple[int, int, bool]:
        """What the cost of a pass with this cache depends on."""
        return self.encoder.keys_values.length, *self.decoder.cost_key
