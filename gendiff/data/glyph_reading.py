"""Measure stroke pictures: how bright, how thick, how slanted, and how well given strokes explain them."""

from __future__ import annotations

import torch
from torch import Tensor

from gendiff.data.strokes import coverage

FAINT = 0.04
"""Share of full brightness below which a pixel counts as background: a faint haze adds up over the whole picture."""

BRIGHT_PIXELS = 12
THICKNESS_RANGE = (0.1, 12.0)


def ink(images: Tensor) -> Tensor:
    """Brightness (B, S, S) in [0, 1] of images (B, 1, S, S) in [-1, 1]; 0 for background and for NaN."""
    brightness = ((images[:, 0].float() + 1) / 2).clamp(max=1)
    return torch.where(brightness > FAINT, brightness, 0.0)


def brightest(picture: Tensor) -> Tensor:
    """Mean (B,) of the 12 largest values of each picture (B, S, S)."""
    return picture.flatten(1).topk(BRIGHT_PIXELS, dim=1).values.mean(1)


def tilt(picture: Tensor) -> Tensor:
    """Shear (B,) of each picture (B, S, S): pixels to the right for each pixel down; 0 if it is empty."""
    axis = torch.arange(picture.shape[-1], dtype=picture.dtype, device=picture.device)
    total = picture.sum((1, 2)).clamp(min=1e-6)
    y = axis[:, None] - ((picture.sum(2) @ axis) / total)[:, None, None]
    weighted = picture * y
    return (weighted * axis).sum((1, 2)) / (weighted * y).sum((1, 2)).clamp(min=1e-6)


def match(picture: Tensor, distance: Tensor) -> Tensor:
    """How well strokes explain a picture: (B,) in [0, 1], the best correlation over a few thicknesses.

    Args:
        picture: (B, S, S) from `ink`.
        distance: (B, 2 S, 2 S), the `distance_map` of the strokes.
    """
    scores = []
    for thickness in (1.0, 2.0, 3.0, 4.5, 6.5):
        drawn = coverage(distance, torch.full_like(picture[:, 0, 0], thickness))
        norms = picture.square().sum((1, 2)) * drawn.square().sum((1, 2))
        scores.append((picture * drawn).sum((1, 2)) / norms.clamp(min=1e-6).sqrt())
    return torch.stack(scores).amax(0)


def fit_thickness(picture: Tensor, distance: Tensor) -> tuple[Tensor, Tensor]:
    """Thickness in pixels (B,) and brightness (B,) in [0, 1] of strokes at known places.

    Bisection on the inked area, which grows with thickness. Area and brightness are both taken relative to the drawn
    strokes' own brightest pixels, so that strokes thinner than a pixel are not mistaken for dark ones.
    """
    peak = brightest(picture).clamp(min=1e-6)
    area = picture.sum((1, 2)) / peak
    low, high = (torch.full_like(peak, bound) for bound in THICKNESS_RANGE)
    for _ in range(22):
        middle = (low + high) / 2
        drawn = coverage(distance, middle)
        drawn_peak = brightest(drawn).clamp(min=1e-6)
        relative = drawn / drawn_peak[:, None, None]
        visible = torch.where(relative * peak[:, None, None] > FAINT, relative, 0.0)
        too_thin = visible.sum((1, 2)) < area
        low, high = torch.where(too_thin, middle, low), torch.where(too_thin, high, middle)
    thickness = (low + high) / 2
    drawn_peak = brightest(coverage(distance, thickness)).clamp(min=1e-6)
    return thickness, (brightest(picture) / drawn_peak).clamp(max=1)
