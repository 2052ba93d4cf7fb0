"""The block of Halton-MaskGIT: modulated RMS norms, attention with normalised queries and keys, SwiGLU, over rows."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention import AttentionModuleMixin
from torch import Tensor, nn
from torch.nn import functional as F

from gendiff.nn.attention import DispatchedAttention
from gendiff.nn.row_cache import RowCache
from gendiff.nn.wide import wide

EPS = 1e-5
"""Of all norms, as published."""


class ShiftedRMSNorm(nn.RMSNorm):
    """RMS norm with an optional bias, whose mean of squares is taken in at least float32.

    Args:
        dim: width D.
        bias: add a learned vector.
    """

    def __init__(self, dim: int, bias: bool = False) -> None:
        super().__init__(dim, eps=EPS)
        self.bias = nn.Parameter(torch.zeros(dim)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., D) in the dtype of x."""
        x = self.weight * unit_mean_square(x)
        return x if self.bias is None else x + self.bias


class FullNormAttention(nn.Module, AttentionModuleMixin):
    """Self-attention whose queries and keys are normalised over all heads together; keys and values may be cached.

    Args:
        dim: width D of rows.
        num_heads: H.
        head_dim: width of a head; H times it need not be D.
        dropout: of its result, in training.
    """

    _default_processor_cls = DispatchedAttention
    _available_processors = (DispatchedAttention,)
    _supports_qkv_fusion = False

    def __init__(self, dim: int, num_heads: int, head_dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_qkv = nn.Linear(dim, 3 * num_heads * head_dim, bias=False)
        self.to_out = nn.Linear(num_heads * head_dim, dim, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.set_processor(DispatchedAttention())  # type: ignore[arg-type]

    def forward(self, x: Tensor, layer: int = 0, cache: RowCache | None = None, rows: Tensor | None = None) -> Tensor:
        """(B, R, D) to (B, R, D).

        Args:
            x: all rows, or those of `rows`.
            layer: of the cache.
            cache: None: rows see one another and nothing else.
            rows: (B, R) from `RowCache.key_rows`; None for all.
        """
        q, k, v = self.to_qkv(x).chunk(3, dim=-1)
        q, k = unit_mean_square(q), unit_mean_square(k)
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)) for part in (q, k, v))  # (B, R, H, head_dim) each
        if cache is not None:
            k, v = cache.update(layer, k.transpose(1, 2), v.transpose(1, 2), rows)
            k, v = k.transpose(1, 2), v.transpose(1, 2)
        kernel: Any = self.processor
        return self.dropout(self.to_out(kernel(q, k, v, None).flatten(2)))


class HaltonBlock(nn.Module):
    """h += g1 attention(norm(h) (1 + s1) + b1), then h += g2 swiglu(norm(h) (1 + s2) + b2).

    The six vectors are a linear function of the condition, zero in a new network, which so passes its input on.

    Args:
        dim: width D.
        num_heads: H.
        head_dim: width of a head.
        mlp_dim: hidden width of the MLP.
        dropout: of the attention's result and of the MLP's hidden layer, in training.

    Source: Besnier et al. 2025 (Halton scheduler, arXiv 2503.17076), whose weights this loads; adaLN-zero as in
        Peebles & Xie 2023 (DiT).
    """

    def __init__(self, dim: int, num_heads: int, head_dim: int, mlp_dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.adaln = nn.Linear(dim, 6 * dim)
        self.norm1 = ShiftedRMSNorm(dim)
        self.attn = FullNormAttention(dim, num_heads, head_dim, dropout)
        self.norm2 = ShiftedRMSNorm(dim)
        self.gate_up = nn.Linear(dim, 2 * mlp_dim, bias=False)  # what goes through SiLU first
        self.down = nn.Linear(mlp_dim, dim, bias=False)
        self.dropout = nn.Dropout(dropout)

    def modulation(self, condition: Tensor) -> Tensor:
        """(B, D), silu of the condition, to (B, 1, 6, D): shift, scale and gate of attention, then of the MLP."""
        return self.adaln(condition).unflatten(-1, (1, 6, -1))

    def forward(
        self,
        h: Tensor,
        modulation: Tensor,
        layer: int = 0,
        cache: RowCache | None = None,
        rows: Tensor | None = None,
    ) -> Tensor:
        """(B, R, D) to (B, R, D); arguments as of `modulation` and `FullNormAttention.forward`."""
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.unbind(dim=2)
        h = h + gate1 * self.attn(torch.addcmul(shift1, self.norm1(h), scale1 + 1), layer, cache, rows)
        gate, up = self.gate_up(torch.addcmul(shift2, self.norm2(h), scale2 + 1)).chunk(2, dim=-1)
        return h + gate2 * self.down(self.dropout(F.silu(gate) * up))


def unit_mean_square(x: Tensor) -> Tensor:
    """(..., D) divided by the root of its mean square, in the dtype of x; in half precision squares could overflow."""
    return F.rms_norm(x.to(wide(x.dtype)), x.shape[-1:], eps=EPS).to(x.dtype)
