"""Ten digits as pen strokes, and strokes of any thickness as pixels."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

SEGMENTS = 32
SUPERSAMPLING = 2

Point = tuple[float, float]


def digit_strokes() -> Tensor:
    """The digits 0 .. 9 as polylines (10, SEGMENTS + 1, 2) of points x, y in the unit box, y pointing down."""
    six = [*_arc(0.85, 0.68, 0.83, 0.68, 270, 180), *_arc(0.5, 0.68, 0.48, 0.32, 180, -180)]
    shapes = [
        _arc(0.5, 0.5, 0.5, 0.5, -90, 270, points=25),
        [(0.2, 0.22), (0.55, 0.0), (0.55, 1.0)],
        [*_arc(0.5, 0.28, 0.48, 0.28, 190, 395), (0.02, 1.0), (1.0, 1.0)],
        [*_arc(0.45, 0.25, 0.5, 0.25, 200, 450), *_arc(0.45, 0.75, 0.52, 0.25, 270, 520)],
        [(0.72, 1.0), (0.72, 0.0), (0.0, 0.68), (1.0, 0.68)],
        [(0.9, 0.0), (0.15, 0.0), *_arc(0.45, 0.68, 0.52, 0.32, 225, 505)],
        six,
        [(0.0, 0.0), (1.0, 0.0), (0.35, 1.0)],
        [*_arc(0.5, 0.25, 0.42, 0.25, 90, 450, points=15), *_arc(0.5, 0.75, 0.5, 0.25, 270, 630, points=16)],
        [(1 - x, 1 - y) for x, y in six],
    ]
    return torch.tensor([_subdivide(shape) for shape in shapes])


def distance_map(strokes: Tensor, size: int) -> Tensor:
    """Distance in pixels from every point of a picture to the nearest point of a polyline.

    Args:
        strokes: (B, P, 2) points x, y in pixels from the middle of the picture.
        size: side of the picture; it is sampled at twice that.

    Returns:
        (B, 2 size, 2 size), in the dtype of `strokes`.
    """
    samples = torch.arange(size * SUPERSAMPLING, dtype=strokes.dtype, device=strokes.device)
    axis = (samples + 0.5) / SUPERSAMPLING - size / 2
    nearest = torch.full((len(strokes), len(axis), len(axis)), torch.inf, dtype=strokes.dtype, device=strokes.device)
    for start, end in pairwise(strokes.unbind(1)):
        length = (end - start).norm(dim=1).clamp(min=1e-6)
        to_x, to_y = (axis - start[:, :1])[:, None, :], (axis - start[:, 1:])[:, :, None]
        direction = ((end - start) / length[:, None])[:, :, None, None]
        along = to_x * direction[:, 0] + to_y * direction[:, 1]
        foot = along.clamp(min=0).minimum(length[:, None, None])
        # |p - foot|^2 expanded: each term but the middle one is a row plus a column, which keeps this fast.
        square = foot.mul(foot.sub(along, alpha=2)).add_(to_x.square() + to_y.square())
        torch.minimum(nearest, square, out=nearest)
    return nearest.clamp_(min=0).sqrt_()


def coverage(distance: Tensor, thickness: Tensor) -> Tensor:
    """Share of each pixel that strokes of `thickness` (B,) pixels cover: (B, S, S) in [0, 1] from (B, 2 S, 2 S)."""
    half = 1 / SUPERSAMPLING
    inside = (thickness[:, None, None] / 2 + half / 2 - distance).clamp(0, half)
    return F.avg_pool2d(inside[:, None], SUPERSAMPLING)[:, 0] / half


def _arc(x: float, y: float, width: float, height: float, start: float, end: float, points: int = 13) -> list[Point]:
    """Points on an ellipse with semi-axes `width` and `height`, from `start` to `end` degrees (0 right, 90 down)."""
    angles = torch.linspace(start, end, points, dtype=torch.float64).deg2rad()
    return list(zip((x + width * angles.cos()).tolist(), (y + height * angles.sin()).tolist(), strict=True))


def _subdivide(points: list[Point]) -> list[Point]:
    """Split the longest segment until there are SEGMENTS: corners stay, long lines can bend."""
    points = list(points)
    while len(points) <= SEGMENTS:
        squares = [(a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2 for a, b in pairwise(points)]
        longest = squares.index(max(squares))
        (x0, y0), (x1, y1) = points[longest : longest + 2]
        points.insert(longest + 1, ((x0 + x1) / 2, (y0 + y1) / 2))
    return points
