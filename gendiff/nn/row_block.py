"""A transformer block over rows of which a light pass may compute only some, reading the others from a cache."""

from __future__ import annotations

from typing import Any

from diffusers.models.attention import AttentionModuleMixin
from torch import Tensor, nn
from torch.nn import functional as F

from gendiff.nn.attention import DispatchedAttention
from gendiff.nn.row_cache import RowCache


class RowAttention(nn.Module, AttentionModuleMixin):
    """Self-attention whose keys and values go through a cache, if there is one.

    Args:
        dim: width D.
        num_heads: H.
        qkv_bias: queries, keys and values have a bias.
        dropout: of its result, in training.
    """

    _default_processor_cls = DispatchedAttention
    _available_processors = (DispatchedAttention,)
    _supports_qkv_fusion = False

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool = True, dropout: float = 0.0) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.to_out = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)
        self.set_processor(DispatchedAttention())  # type: ignore[arg-type]

    def forward(
        self,
        x: Tensor,
        layer: int = 0,
        cache: RowCache | None = None,
        rows: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Rows (B, R, D) to (B, R, D).

        Args:
            x: all rows, or those of `rows`.
            layer: of the cache.
            cache: None: rows see one another and nothing else.
            rows: (B, R) from `RowCache.key_rows`; None for all.
            mask: (B, 1, 1, keys) bool, True = may be seen.
        """
        q, k, v = self.to_qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(dim=2)  # (B, R, H, D / H) each
        if cache is not None:
            k, v = cache.update(layer, k.transpose(1, 2), v.transpose(1, 2), rows)
            k, v = k.transpose(1, 2), v.transpose(1, 2)
        kernel: Any = self.processor
        return self.dropout(self.to_out(kernel(q, k, v, mask).flatten(2)))


class RowBlock(nn.Module):
    """Attention and MLP with residual branches.

    Args:
        dim: width D.
        num_heads: H.
        mlp_ratio: hidden width over D.
        qkv_bias: see `RowAttention`.
        norm: "pre": h + f(LN(h)), as in ViT; "post": LN(h + f(h)), as in BERT and MaskGIT.
        eps: of the norms.
        dropout: of both branches, in training.
        gelu: "none" or "tanh", how it is approximated.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        norm: str = "pre",
        eps: float = 1e-6,
        dropout: float = 0.0,
        gelu: str = "none",
    ) -> None:
        super().__init__()
        self._post = norm == "post"
        self._gelu = gelu
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = RowAttention(dim, num_heads, qkv_bias, dropout)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.fc1 = nn.Linear(dim, int(dim * mlp_ratio))
        self.fc2 = nn.Linear(int(dim * mlp_ratio), dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        h: Tensor,
        layer: int = 0,
        cache: RowCache | None = None,
        rows: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """(B, R, D) to (B, R, D); arguments as of `RowAttention.forward`."""
        if self._post:
            h = self.norm1(h + self.attn(h, layer, cache, rows, mask))
            return self.norm2(h + self._mlp(h))
        h = h + self.attn(self.norm1(h), layer, cache, rows, mask)
        return h + self._mlp(self.norm2(h))

    def _mlp(self, x: Tensor) -> Tensor:
        return self.dropout(self.fc2(F.gelu(self.fc1(x), approximate=self._gelu)))
