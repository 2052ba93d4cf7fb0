"""What a network must offer to decode hidden tokens, and to have its context reused (ReCAP)."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from gendiff.nn.row_cache import Layout, RowCache


class MaskedModel(Protocol):
    """A network over N image tokens behind P prefix rows; MaskGIT, MAGE, MAR and the U-ViT adapter are such.

    `forward(tokens, hidden, condition, cache=None, rows=None, return_dict=True)` gives logits (B, N, V) of discrete
    tokens (B, N), or features (B, N, D) of continuous ones (B, N, c). With a cache from `make_cache` and no `rows` it
    also fills the cache, from its beginning. With `rows` (B, m) it computes those image positions alone, in their
    order, -1 = padding, writes their keys and values over their own rows, and reads all others as they are.
    """

    num_tokens: int

    @property
    def num_prefix_rows(self) -> int: ...

    def make_cache(
        self, recompute_prefix: bool = True, layout: Layout = "in_place", dtype: torch.dtype | None = None
    ) -> Any: ...

    def __call__(
        self,
        tokens: Tensor,
        hidden: Tensor,
        condition: Any,
        cache: Any = None,
        rows: Tensor | None = None,
        return_dict: bool = True,
    ) -> Any: ...


def light_inputs(
    tokens: Tensor, cache: RowCache | None, rows: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """What a pass computes: tokens, their positions and their rows of keys; the latter two None for all.

    In a full pass it empties the cache.

    Args:
        tokens: (B, N) or (B, N, c).
        cache: of the pass.
        rows: (B, m) image positions, -1 = padding.
    """
    if rows is None or cache is None:
        if cache is not None:
            cache.begin()
        return tokens, None, None
    # What lies outside the cache refuses, by name.
    positions = rows.clamp(0, tokens.shape[1] - 1)
    index = positions if tokens.ndim == 2 else positions[..., None].expand(-1, -1, tokens.shape[2])
    return tokens.gather(1, index), positions, cache.key_rows(rows)
