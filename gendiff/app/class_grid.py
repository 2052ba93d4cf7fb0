"""The grid of pictures that `gendiff sample` writes for tasks with classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from PIL import Image
from torch import Tensor

from .given_pictures import without
from .pictures import grid, to_pil

SHOWN = 84
"""Side in screen pixels, about, that a picture is enlarged to."""
COLUMNS = 8
"""Pictures in a row, at most."""


def class_grid(images: Tensor, names: Sequence[str], per_class: int, given: Mapping[str, Tensor]) -> Image.Image:
    """What was given in the first row, then the images of each class, in rows of at most eight.

    Args:
        images: (B, C, S, S) in [0, 1], those of a class next to one another.
        names: of the class of each.
        per_class: images of each class.
        given: "image" (1, C, S, S) in [0, 1], and perhaps "mask_image" (1, 1, S, S); or nothing.
    """
    rows: list[Tensor] = []
    labels: list[str] = []
    if given:
        image, mask = given["image"], given.get("mask_image")
        rows.append(image if mask is None else torch.cat([image, without(image, mask)]))
        labels.append("given")
    for first in range(0, len(images), per_class):
        parts = images[first : first + per_class].split(COLUMNS)
        rows += parts
        labels += [names[first], *[""] * (len(parts) - 1)]
    scale = max(1, SHOWN // images.shape[-1])
    pictures = [[to_pil(image, scale) for image in row] for row in rows]
    return grid(pictures, labels if any(labels) else None)
