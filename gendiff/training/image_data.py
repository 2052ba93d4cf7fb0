"""What methods need of a data set of images, and a few of its images that stand for all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gendiff.errors import InvalidInputError


def image_shape(dataset: Any) -> tuple[int, int]:
    """(C, S) of a data set of square images.

    Raises:
        InvalidInputError: it has none, or they are not square.
    """
    shape = tuple(getattr(dataset, "images", torch.empty(0)).shape)
    if len(shape) != 4 or shape[2] != shape[3]:
        raise InvalidInputError(
            f"data must be square images (N, C, S, S), but those of {type(dataset).__name__} are {shape}."
        )
    return shape[1], shape[2]


def check_labelled(dataset: Any) -> None:
    """Raise InvalidInputError unless the data set has images with one class each."""
    for needed in ("images", "labels", "classes"):
        if not hasattr(dataset, needed):
            raise InvalidInputError(
                f"data must have one class a picture, but {type(dataset).__name__} has no {needed}."
            )


def fair_sample(dataset: Any, count: int) -> range:
    """Positions of `count` images, of all if there are no more, that stand for all.

    They are the first ones, or evenly spaced ones where the first lack a class, as those of sorted data do.
    """
    count = min(count, len(dataset))
    classes, first = getattr(dataset, "classes", ()), torch.as_tensor(getattr(dataset, "labels", ()))[:count]
    if classes and len(first.unique()) == min(count, len(classes)):
        return range(count)
    step = len(dataset) // count
    return range(0, step * count, step)


def images_at(dataset: Any, positions: Sequence[int]) -> Tensor:
    """(B, C, S, S) in [-1, 1], as items hold them."""
    return torch.stack([dataset[index]["image"] for index in positions])
