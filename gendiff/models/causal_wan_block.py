"""A block of the Wan 2.1 transformer whose self-attention knows frames: who sees whom, and a cache of clean ones.

The layers are diffusers' own, so that their parameters bear the names of diffusers' `WanTransformer3DModel`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.attention import FeedForward
from diffusers.models.transformers.transformer_wan import WanAttention, WanAttnProcessor
from torch import Tensor, nn

from gendiff.nn.attention import DispatchedAttention
from gendiff.nn.frame_plan import FramePlan
from gendiff.nn.query_groups import QueryGroup, query_groups, token_rows
from gendiff.nn.rotary_3d import rotary_table_3d, rotate_pairs
from gendiff.nn.video_cache import CacheView, VideoKVCache
from gendiff.nn.wide import WideLayerNorm, wide


class CastRMSNorm(nn.RMSNorm):
    """RMSNorm in the dtype of its weight. Under autocast torch would warn of its slow path for mixed dtypes."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype)).to(x.dtype)


@dataclass(frozen=True)
class WanPass:
    """What all blocks of one forward share.

    Attributes:
        cache: keys and values of clean frames; None without one.
        columns: (K S,) rows of the new keys that the key columns are, where they are not simply the new keys.
        groups: queries and the keys they see.
        query_table, key_table: rotary tables of (T S) and (K S) rows.
        text: (B, L, d) and its mask (B, 1, 1, L).
    """

    cache: VideoKVCache | None
    columns: Tensor | None
    groups: list[QueryGroup]
    query_table: tuple[Tensor, Tensor]
    key_table: tuple[Tensor, Tensor]
    text: Tensor
    text_mask: Tensor | None

    @classmethod
    def make(
        cls,
        source: FramePlan | CacheView,
        cache: VideoKVCache | None,
        grid: tuple[int, int],
        head_dim: int,
        text: Tensor,
        text_mask: Tensor | None,
    ) -> WanPass:
        """Tables and groups of a plan or of a view of a cache, made once for all blocks."""
        device, tokens = text.device, grid[0] * grid[1]
        columns = None
        if isinstance(source, FramePlan):
            frames = source.columns.cpu()
            if not torch.equal(frames, torch.arange(len(source.query_positions))):
                columns = token_rows(frames, tokens).to(device)
        positions = (source.query_positions.to(device), source.key_positions.to(device))
        queries, keys = (rotary_table_3d(p, grid, head_dim, wide(text.dtype)) for p in positions)
        one_shape = cache is not None and cache.temporal.static
        groups = query_groups(source.mask, tokens, device, one_shape)
        return cls(cache, columns, groups, queries, keys, text, text_mask)


class CausalWanBlock(nn.Module):
    """Joint attention over all tokens of all visible frames, attention to text, MLP; modulated for each frame.

    Args:
        dim: d.
        ffn_dim: hidden width of the MLP.
        num_heads: h.
        eps: of all norms.
    """

    def __init__(self, dim: int, ffn_dim: int, num_heads: int, eps: float) -> None:
        super().__init__()
        self.norm1 = WideLayerNorm(dim, eps, elementwise_affine=False)
        self.attn1 = _attention(dim, num_heads, eps, DispatchedAttention(), to_text=False)
        self.attn2 = _attention(dim, num_heads, eps, WanAttnProcessor(), to_text=True)
        self.norm2 = WideLayerNorm(dim, eps)
        self.ffn = FeedForward(dim, inner_dim=ffn_dim, activation_fn="gelu-approximate")
        self.norm3 = WideLayerNorm(dim, eps, elementwise_affine=False)
        self.scale_shift_table = nn.Parameter(torch.randn(1, 6, dim) / dim**0.5)

    def forward(self, x: Tensor, modulation: Tensor, layer: int, walk: WanPass, last: bool) -> Tensor | None:
        """One block.

        Args:
            x: tokens (B, T, S, d).
            modulation: (B, T, 6, d).
            layer: number of this block.
            walk: what all blocks share.
            last: whether nothing reads this block's result, as in the last block of a pass that writes.

        Returns: (B, T, S, d), or None if `last`.
        """
        dtype = x.dtype
        terms = (self.scale_shift_table + modulation.to(wide(dtype))).unsqueeze(2).unbind(3)  # each (B, T, 1, d)
        shift, scale, gate = terms[:3]
        update = self._frames((self.norm1(x) * (1 + scale) + shift).to(dtype), layer, walk, last)
        if update is None:
            return None
        x = (x + update * gate).to(dtype)
        text = self.attn2(self.norm2(x).to(dtype).flatten(1, 2), walk.text, walk.text_mask, None)
        x = x + text.unflatten(1, x.shape[1:3])
        shift, scale, gate = terms[3:]
        return (x + self.ffn((self.norm3(x) * (1 + scale) + shift).to(dtype)) * gate).to(dtype)

    def _frames(self, x: Tensor, layer: int, walk: WanPass, last: bool) -> Tensor | None:
        """Attention among frames; a cache holds keys as they were before rotation, so that ranks may change."""
        attn = self.attn1
        rows = x.flatten(1, 2)
        k = attn.norm_k(attn.to_k(rows)).unflatten(2, (attn.heads, -1))  # (B, T S, h, d / h)
        v = attn.to_v(rows).unflatten(2, (attn.heads, -1))
        if walk.cache is not None:
            k, v = (part.transpose(1, 2) for part in walk.cache.append(layer, k.transpose(1, 2), v.transpose(1, 2)))
        elif walk.columns is not None:
            k, v = k[:, walk.columns], v[:, walk.columns]
        if last:
            return None
        q = attn.norm_q(attn.to_q(rows)).unflatten(2, (attn.heads, -1))
        q, k = rotate_pairs(q, walk.query_table), rotate_pairs(k, walk.key_table)
        attend: Any = attn.processor
        out = [attend(q[:, g.queries], k[:, g.keys], v[:, g.keys], g.mask) for g in walk.groups]
        joined = torch.cat(out, dim=1) if len(out) > 1 else out[0]
        return attn.to_out[1](attn.to_out[0](joined.flatten(2))).unflatten(1, x.shape[1:3])


def _attention(dim: int, num_heads: int, eps: float, processor: Any, to_text: bool) -> WanAttention:
    head_dim = dim // num_heads
    context = head_dim if to_text else None
    attn = WanAttention(dim, num_heads, head_dim, eps, cross_attention_dim_head=context, processor=processor)
    attn.norm_q, attn.norm_k = CastRMSNorm(dim, eps), CastRMSNorm(dim, eps)
    return attn
