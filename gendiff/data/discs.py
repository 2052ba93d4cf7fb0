"""Discs drawn by the exact area they cover of every pixel.

So the pixels of a disc that is inside the picture sum to its area wherever it is, and those of discs that do not
overlap sum to at most 1. The centroid of the pixels is the centre of the disc to about 0.005 pixels for a radius of 4.
"""

from __future__ import annotations

import math

import numpy as np


def disc_coverage(centres: np.ndarray, radius: float, size: int) -> np.ndarray:
    """The share of every pixel that discs cover, summed over the discs of a frame.

    Args:
        centres: (F, n, 2) float64, row and column; the centres of pixels are at whole numbers.
        radius: in pixels.
        size: height and width of the frames.

    Returns:
        (F, size, size) float64. What lies outside the frame is cut off.
    """
    window = math.ceil(2 * radius) + 1  # pixels along an axis that a disc may touch
    # A border as wide as a window, so that windows over the edge need no case of their own.
    first = np.clip(np.floor(centres - radius + 0.5), -window, size).astype(np.int64)
    canvas = np.zeros((len(centres), size + 2 * window, size + 2 * window))
    edges = first[..., None] + np.arange(window + 1) - 0.5 - centres[..., None]
    areas = np.diff(np.diff(_area_below(edges[:, :, 0, :, None], edges[:, :, 1, None, :], radius), axis=-1), axis=-2)
    inside = first[..., None] + window + np.arange(window)
    frame = np.arange(len(centres))[:, None, None]
    for disc in range(centres.shape[1]):
        canvas[frame, inside[:, disc, 0, :, None], inside[:, disc, 1, None, :]] += areas[:, disc]
    return canvas[:, window : window + size, window : window + size]


def _area_below(row: np.ndarray, column: np.ndarray, radius: float) -> np.ndarray:
    """Area of a disc around 0 to the left of `column`, from the middle down to `row` (negative above the middle).

    Left of `column` <= 0 the disc reaches as far down as `reach`, and in the row y it is h(y) + column wide, with
    h(y) = sqrt(radius^2 - y^2). Right of the middle the area is what the mirrored column leaves of the whole.
    """
    depth = np.minimum(np.abs(column), radius)
    reach = np.sqrt(radius * radius - depth * depth)
    y = np.clip(row, -reach, reach)
    cap = _half_segment(y, radius) - depth * y
    whole = 2 * _half_segment(np.clip(row, -radius, radius), radius)
    return np.where(column > 0, whole - cap, cap)


def _half_segment(y: np.ndarray, radius: float) -> np.ndarray:
    """Integral of sqrt(radius^2 - t^2) from 0 to y."""
    return 0.5 * (y * np.sqrt(radius * radius - y * y) + radius * radius * np.arcsin(y / radius))
