"""Arithmetic that half precision would spoil, in at least float32."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def wide(dtype: torch.dtype) -> torch.dtype:
    """Float32, or float64 where that is what is computed in: norms, modulation and residuals are summed in it."""
    return torch.promote_types(dtype, torch.float32)


class WideLayerNorm(nn.LayerNorm):
    """LayerNorm in at least float32, which is also what it gives. diffusers' `FP32LayerNorm` would round float64."""

    def forward(self, x: Tensor) -> Tensor:
        dtype = wide(x.dtype)
        weight, bias = (None if part is None else part.to(dtype) for part in (self.weight, self.bias))
        return nn.functional.layer_norm(x.to(dtype), self.normalized_shape, weight, bias, self.eps)
