"""Images with one class each: what the data sets for image generation have in common."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from gendiff.data.rendered import from_bytes
from gendiff.errors import InvalidInputError


class LabelledImages(Dataset):
    """Images and their classes, held in memory.

    An item is `{"image": (C, S, S) float in [-1, 1], "label": () int64}`.

    Args:
        images: (N, C, S, S) uint8.
        labels: (N,) integers, positions in `classes`.
        classes: name of each class.
        num_images: keep only the first so many.

    Attributes:
        images: (N, C, S, S) uint8 tensor.
        labels: (N,) int64 tensor.
        classes: names of the classes; label k is `classes[k]`.

    Raises:
        InvalidInputError: `num_images` is not from 1 to N.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def __init__(self, images: np.ndarray, labels: np.ndarray, classes: tuple[str, ...], num_images: int | None = None):
        check_num_images(num_images, len(images))
        self.images = torch.from_numpy(np.ascontiguousarray(images[:num_images]))
        self.labels = torch.from_numpy(labels[:num_images].astype(np.int64))
        self.classes = classes

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"image": from_bytes(self.images[index]), "label": self.labels[index]}


def check_num_images(num_images: int | None, available: int) -> None:
    """Raise InvalidInputError unless `num_images` is None or a whole number from 1 to `available`."""
    if num_images is None:
        return
    if isinstance(num_images, bool) or not isinstance(num_images, int) or not 1 <= num_images <= available:
        raise InvalidInputError(f"num_images must be a whole number from 1 to {available}, got {num_images!r}")


def check_choice(name: str, value: Any, allowed: Iterable[Any]) -> None:
    """Raise InvalidInputError, naming the argument and what is allowed, unless `value` is one of `allowed`."""
    allowed = list(allowed)
    if value not in allowed:
        raise InvalidInputError(f"{name} must be one of {', '.join(map(str, allowed))}, got {value!r}.")
