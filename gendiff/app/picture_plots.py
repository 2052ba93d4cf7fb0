"""Pictures of images as plots are written, STEM.png, STEM.svg and STEM.csv: samples by seed, and what they resemble."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gendiff.errors import InvalidInputError

from .plots import Written, save_plot

SHOWN = 84
"""Side in screen pixels, about, that an image is enlarged to."""
TEXT = 22
"""Screen pixels below an image for its caption."""
GAP = 6
DPI = 100
"""Screen pixels in an inch of the figure, so that one font size fits."""
BLOCK = 1024


def sample_grid(stem: str | Path, images: Tensor, seeds: Sequence[int], columns: int = 8, title: str = "") -> Written:
    """Samples in a grid, each with the seed that makes it again; the CSV says which is where.

    Args:
        stem: path of the files without their endings.
        images: uint8 (N, C, H, W), C = 1 or 3.
        seeds: (N,).
        columns: images in a row.
        title: above the grid.

    Raises:
        ImportError: matplotlib is missing.
        InvalidInputError: other images, as many seeds as images are not given, or `columns` is below 1.
    """
    _check_images("images", images)
    if len(seeds) != len(images):
        raise InvalidInputError(f"seeds must be as many as the {len(images)} images, got {len(seeds)}.")
    if isinstance(columns, bool) or not isinstance(columns, int) or columns < 1:
        raise InvalidInputError(f"columns must be a whole number of at least 1, got {columns!r}.")
    places = [divmod(index, columns) for index in range(len(images))]
    table = {"row": [row for row, _ in places], "column": [column for _, column in places], "seed": list(seeds)}
    return _mosaic(stem, images, places, [str(seed) for seed in seeds], table, title)


def nearest_training_images(
    stem: str | Path,
    samples: Tensor,
    training: Tensor,
    seeds: Sequence[int] | None = None,
    features: tuple[Tensor, Tensor] | None = None,
    title: str = "",
) -> Written:
    """Beside each sample the training image nearest to it: what a model that copies would be seen by.

    Four pairs fill a row. Nearness is the root mean square difference of pixels, in grey levels, or the Euclidean
    distance of features.

    Args:
        stem: path of the files without their endings.
        samples: uint8 (N, C, H, W), C = 1 or 3.
        training: uint8 (M, C, H, W), of the same size and channels.
        seeds: (N,) of the samples; their indices if left out.
        features: (N, d) of the samples and (M, d) of the training images; None compares pixels. Shifts and shades that
            change many pixels hide a copy from the latter.
        title: above the pairs.

    Raises:
        ImportError: matplotlib is missing.
        InvalidInputError: images or features that do not fit together.
    """
    _check_images("samples", samples)
    _check_images("training", training)
    if samples.shape[1:] != training.shape[1:]:
        raise InvalidInputError(
            f"samples and training must be images of one shape, got {tuple(samples.shape[1:])} and "
            f"{tuple(training.shape[1:])}."
        )
    seeds = range(len(samples)) if seeds is None else seeds
    if len(seeds) != len(samples):
        raise InvalidInputError(f"seeds must be as many as the {len(samples)} samples, got {len(seeds)}.")
    nearest, distances = _nearest(*_rows(samples, training, features))
    if features is None:
        distances = distances / math.sqrt(samples[0].numel())
    pairs = torch.stack([samples.cpu(), training.cpu()[nearest]], dim=1).flatten(0, 1)
    places = [divmod(index, 8) for index in range(len(pairs))]
    captions = [
        text
        for seed, index, distance in zip(seeds, nearest.tolist(), distances.tolist(), strict=True)
        for text in (f"seed {seed}", f"#{index}: {distance:.3g}")
    ]
    unit = "rms_grey_levels" if features is None else "feature_distance"
    table = {"seed": list(seeds), "training_index": nearest.tolist(), unit: distances.tolist()}
    return _mosaic(stem, pairs, places, captions, table, title)


def _rows(samples: Tensor, training: Tensor, features: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
    if features is None:
        first, second = samples.flatten(1), training.flatten(1)
    else:
        first, second = features
        counts = (len(samples), len(training))
        if (
            first.ndim != 2
            or second.ndim != 2
            or first.shape[1] != second.shape[1]
            or ((len(first), len(second)) != counts)
        ):
            raise InvalidInputError(
                f"features must be ({counts[0]}, d) and ({counts[1]}, d), got {tuple(first.shape)} and "
                f"{tuple(second.shape)}."
            )
    return first.double().cpu(), second.double().cpu()


def _nearest(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Index in `second` of, and Euclidean distance to, the nearest of each row of `first`, (N,) both."""
    best = torch.full((len(first),), torch.inf, dtype=first.dtype)
    index = torch.zeros(len(first), dtype=torch.int64)
    for start in range(0, len(second), BLOCK):
        # Without the matrix product, whose rounding would keep a copy from being at distance 0.
        found = torch.cdist(first, second[start : start + BLOCK], compute_mode="donot_use_mm_for_euclid_dist").min(1)
        closer = found.values < best
        best[closer], index[closer] = found.values[closer], found.indices[closer] + start
    return index, best


def _mosaic(
    stem: str | Path,
    images: Tensor,
    places: Sequence[tuple[int, int]],
    captions: Sequence[str],
    table: dict[str, list[Any]],
    title: str,
) -> Written:
    """Images at (row, column) with captions below, as one picture whose pixels stay square and sharp."""
    scale = max(1, SHOWN // images.shape[-1])
    pixels = images.cpu().expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()
    pixels = pixels.repeat(scale, axis=1).repeat(scale, axis=2)
    height, width = pixels.shape[1] + TEXT, pixels.shape[2] + GAP
    rows, columns = (1 + max(place[axis] for place in places) for axis in (0, 1))
    sheet = np.full((rows * height, columns * width - GAP, 3), 255, np.uint8)
    for picture, (row, column) in zip(pixels, places, strict=True):
        top, left = row * height, column * width
        sheet[top : top + picture.shape[0], left : left + picture.shape[1]] = picture

    def draw(axes: Any) -> None:
        axes.imshow(sheet, interpolation="none")
        axes.set_axis_off()
        axes.set_title(title)
        for text, (row, column) in zip(captions, places, strict=True):
            x, y = column * width + (width - GAP) / 2, (row + 1) * height - TEXT / 2
            axes.text(x, y, text, ha="center", va="center", fontsize=7)

    return save_plot(stem, draw, table, (sheet.shape[1] / DPI + 0.3, sheet.shape[0] / DPI + 0.5))


def _check_images(name: str, images: Tensor) -> None:
    if not isinstance(images, Tensor) or images.dtype != torch.uint8:
        got = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise InvalidInputError(f"{name} must be a uint8 tensor, got {got}.")
    if images.ndim != 4 or images.shape[1] not in (1, 3) or images.numel() == 0:
        raise InvalidInputError(
            f"{name} must be (N, C, H, W) with C = 1 or 3 and not empty, got {tuple(images.shape)}."
        )
