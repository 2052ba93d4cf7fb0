"""Multi-head attention whose kernel is chosen by diffusers' dispatcher: `model.set_attention_backend("flash")`."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor, nn


class DispatchedAttention:
    """The one place that calls an attention kernel; never with `is_causal`, which a cache would make wrong."""

    _attention_backend: Any = None
    _parallel_config: Any = None

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None = None) -> Tensor:
        if mask is not None and mask.ndim == 2:
            mask = mask[None, None]  # the dispatcher takes (N, Tk) for padding, which (Tq, Tk) is where Tq = N
        backend, parallel = self._attention_backend, self._parallel_config
        if q.device.type == "cpu" and torch.is_autocast_enabled("cpu") and torch.is_grad_enabled():
            # The CPU kernel's backward pass takes several times as long in bfloat16 as in float32.
            with torch.autocast("cpu", enabled=False):
                return dispatch_attention_fn(
                    q.float(), k.float(), v.float(), attn_mask=mask, scale=scale, backend=backend
                )
        return dispatch_attention_fn(q, k, v, attn_mask=mask, scale=scale, backend=backend, parallel_config=parallel)


class MultiHeadAttention(nn.Module, AttentionModuleMixin):
    """Projections of multi-head attention; what lies between them (cache, positions, gathering) is the caller's.

    Args:
        dim: width d of queries and of the result.
        num_heads: h.
        context_dim: width of what keys and values are made of; None for `dim`.
        qk_norm: RMS-normalise each head's queries and keys, before they are cached or rotated.
    """

    _default_processor_cls = DispatchedAttention
    _available_processors = (DispatchedAttention,)
    _supports_qkv_fusion = False

    def __init__(self, dim: int, num_heads: int, context_dim: int | None = None, qk_norm: bool = False) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_q = nn.Linear(dim, dim)
        self.to_k = nn.Linear(context_dim or dim, dim)
        self.to_v = nn.Linear(context_dim or dim, dim)
        self.to_out = nn.Linear(dim, dim)
        self.norm_q = nn.RMSNorm(dim // num_heads) if qk_norm else nn.Identity()
        self.norm_k = nn.RMSNorm(dim // num_heads) if qk_norm else nn.Identity()
        self.set_processor(DispatchedAttention())  # type: ignore[arg-type]

    def queries(self, x: Tensor) -> Tensor:
        """(..., d) to (..., h, d / h)."""
        return self.norm_q(self._heads(self.to_q(x)))

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(..., context_dim) to keys and values (..., h, d / h)."""
        return self.norm_k(self._heads(self.to_k(x))), self._heads(self.to_v(x))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attention over axis 1, before `to_out`.

        Args:
            q: (N, Tq, h, d / h).
            k: (N, Tk, h, d / h).
            v: like `k`.
            mask: bool, broadcastable to (N, h, Tq, Tk), True = may attend; None = all may.

        Returns: (N, Tq, d).
        """
        kernel: Any = self.processor
        return kernel(q, k, v, mask).flatten(2)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1))
