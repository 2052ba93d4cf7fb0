"""Rotary position embedding along one axis (Su et al. 2021), in the dtype of what is rotated."""

from __future__ import annotations

import torch
from torch import Tensor


def rotary_table(positions: Tensor, dim: int, dtype: torch.dtype, theta: float = 10_000.0) -> tuple[Tensor, Tensor]:
    """Cosines and sines (T, dim) of the angles position * theta^(-2i / dim); i counts pairs (i, i + dim / 2).

    Args:
        positions: (T,), whole numbers. The angles are computed in float64: in float32 they lose digits as T grows.
        dim: even, width of an attention head.
        dtype: of the result.
    """
    frequencies = theta ** -(torch.arange(0, dim, 2, dtype=torch.float64, device=positions.device) / dim)
    angles = positions.double()[:, None] * frequencies
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Turn each pair of channels of `x` (..., T, h, dim) by its angle; `table` as from `rotary_table`."""
    cos, sin = table
    first, second = x.chunk(2, dim=-1)
    return x * cos[:, None] + torch.cat([-second, first], dim=-1) * sin[:, None]
