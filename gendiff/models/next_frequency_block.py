"""A transformer block with adaptive norms and attention with biased, optionally normalised, queries and keys."""

from __future__ import annotations

import math
from typing import Any

import torch
from diffusers.models.attention import AttentionModuleMixin
from torch import Tensor, nn
from torch.nn import functional as F

from gendiff.nn.attention import DispatchedAttention
from gendiff.nn.stage_cache import StageCache
from gendiff.nn.wide import WideLayerNorm, wide

LARGEST_SCALE = 100.0
"""A head's learned scale of normalised queries is at most this."""

LARGEST_HIDDEN = 2**24
"""Bytes of an MLP's hidden layer computed together on a CPU. Memory for more is new to the process each time, and costs
more than it saves."""


def modulated(h: Tensor, norm: WideLayerNorm, scale: Tensor, shift: Tensor) -> Tensor:
    """norm(h) (1 + scale) + shift, (B, T, D) in the dtype of h."""
    return torch.addcmul(shift, norm(h).to(h.dtype), scale + 1)


class StageAttention(nn.Module, AttentionModuleMixin):
    """Self-attention in one product for queries, keys and values; queries and values have a bias, keys have none.

    Args:
        dim: width D.
        num_heads: H.
        qk_norm: attention by angle: queries and keys of unit length, with a learned scale for each head. Otherwise
            products are scaled by 0.25 / sqrt(D / H).

    Source: Tian et al. 2024 (VAR), whose weights this loads.
    """

    _default_processor_cls = DispatchedAttention
    _available_processors = (DispatchedAttention,)
    _supports_qkv_fusion = False

    def __init__(self, dim: int, num_heads: int, qk_norm: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = 1.0 if qk_norm else 0.25 / math.sqrt(dim // num_heads)
        self.to_qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(dim))
        self.v_bias = nn.Parameter(torch.zeros(dim))
        self.log_scale = nn.Parameter(torch.full((1, num_heads, 1, 1), math.log(4.0))) if qk_norm else None
        self.to_out = nn.Linear(dim, dim)
        self.set_processor(DispatchedAttention())  # type: ignore[arg-type]

    def forward(self, x: Tensor, mask: Tensor | None, layer: int, cache: StageCache | None) -> Tensor:
        """(B, T, D) to (B, T, D); keys and values go through the cache, if there is one."""
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = F.linear(x, self.to_qkv.weight, bias).unflatten(-1, (3, self.num_heads, -1))
        q, k, v = qkv.unbind(dim=2)  # (B, T, H, D / H) each
        if self.log_scale is not None:
            # In float32: the square of a half-precision row can overflow.
            dtype = wide(v.dtype)
            scale = self.log_scale.to(dtype).clamp(max=math.log(LARGEST_SCALE)).exp().view(1, 1, -1, 1)
            q = (F.normalize(q.to(dtype), dim=-1) * scale).to(v.dtype)
            k = F.normalize(k.to(dtype), dim=-1).to(v.dtype)
        if cache is not None:
            k, v = (rows.transpose(1, 2) for rows in (k, v))
            k, v = (rows.transpose(1, 2) for rows in cache.keys_values.append(layer, k, v))
        kernel: Any = self.processor
        return self.to_out(kernel(q, k, v, mask, self.scale).flatten(2))


class NextFrequencyBlock(nn.Module):
    """h += g1 attention(norm(h) (1 + s1) + b1), then h += g2 mlp(norm(h) (1 + s2) + b2).

    Args:
        dim: width D.
        num_heads: H.
        mlp_ratio: hidden width over D.
        qk_norm: see `StageAttention`.
        shared_adaln: the network makes the six modulations once; a block only adds its table to them.
        drop_path: share of training samples that skip a branch.
    """

    def __init__(
        self, dim: int, num_heads: int, mlp_ratio: float, qk_norm: bool, shared_adaln: bool, drop_path: float
    ) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.norm = WideLayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.attn = StageAttention(dim, num_heads, qk_norm)
        self.fc1 = nn.Linear(dim, int(dim * mlp_ratio))
        self.fc2 = nn.Linear(int(dim * mlp_ratio), dim)
        self.adaln = None if shared_adaln else nn.Linear(dim, 6 * dim)
        self.adaln_table = nn.Parameter(torch.randn(1, 1, 6, dim) / dim**0.5) if shared_adaln else None

    def modulation(self, condition: Tensor) -> Tensor:
        """(B, 1, 6, D), gates first, from silu(c) (B, D), or from the shared six (B, 1, 6, D)."""
        if self.adaln_table is not None:
            return self.adaln_table + condition
        assert self.adaln is not None
        return self.adaln(condition).unflatten(-1, (1, 6, -1))

    def forward(
        self, h: Tensor, modulation: Tensor, mask: Tensor | None, layer: int, cache: StageCache | None
    ) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        gate1, gate2, scale1, scale2, shift1, shift2 = modulation.unbind(dim=2)
        attended = self.attn(modulated(h, self.norm, scale1, shift1), mask, layer, cache)
        h = h + self._dropped(gate1 * attended)
        return h + self._dropped(gate2 * self._mlp(modulated(h, self.norm, scale2, shift2)))

    def _mlp(self, x: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        parts = 1
        if x.device.type == "cpu" and not torch.is_grad_enabled():
            parts = math.ceil(x[..., 0].numel() * self.fc1.out_features * x.element_size() / LARGEST_HIDDEN)
        pieces = [self.fc2(F.gelu(self.fc1(rows), approximate="tanh")) for rows in x.flatten(0, 1).chunk(parts)]
        return (pieces[0] if len(pieces) == 1 else torch.cat(pieces)).view_as(x)

    def _dropped(self, branch: Tensor) -> Tensor:
        if not self.training or not self.drop_path:
            return branch
        kept = torch.rand(len(branch), 1, 1, device=branch.device) >= self.drop_path
        return branch * kept / (1 - self.drop_path)
