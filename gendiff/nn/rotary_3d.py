"""Rotary position embedding over frame, row and column, as the Wan video models use it (Wan team 2025).

Wan turns neighbouring channels (2i, 2i + 1), where `gendiff.nn.rotary` turns channels half a head apart: the same
rotation under another order of channels, which trained weights do not forgive.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rotary_table_3d(
    frames: Tensor, grid: tuple[int, int], dim: int, dtype: torch.dtype, theta: float = 10_000.0
) -> tuple[Tensor, Tensor]:
    """Cosines and sines (T S, dim / 2), frame by frame, then row by row.

    Rows and columns get 2 (dim // 6) channels of a head each, frames the rest, in the order frames, rows, columns.
    Within n channels of one axis, pair i turns by position * theta^(-2i / n).

    Args:
        frames: (T,) whole numbers, position of each frame in time.
        grid: rows and columns of tokens, S = rows * columns.
        dim: even, width of an attention head.
        dtype: of the result; the angles are computed in float64.
    """
    device = frames.device
    side = 2 * (dim // 6)
    axes = (frames, torch.arange(grid[0], device=device), torch.arange(grid[1], device=device))
    parts = []
    for axis, (positions, width) in enumerate(zip(axes, (dim - 2 * side, side, side), strict=True)):
        frequencies = theta ** -(torch.arange(0, width, 2, dtype=torch.float64, device=device) / max(width, 1))
        shape = [1, 1, 1, width // 2]
        shape[axis] = len(positions)
        angles = (positions.double()[:, None] * frequencies).view(shape)
        parts.append(angles.expand(len(frames), *grid, -1))
    angles = torch.cat(parts, dim=-1).flatten(0, 2)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate_pairs(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Turn channels (2i, 2i + 1) of `x` (..., rows, h, dim) by angle i of their row, in the dtype of the table."""
    cos, sin = (part[:, None] for part in table)
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([first * cos - second * sin, first * sin + second * cos], dim=-1)
    return turned.flatten(-2).to(x.dtype)
