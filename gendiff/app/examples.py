"""Pictures that the gallery keeps something of: test images, or where those are not here the model's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .checkpoint_data import unseen_examples


@dataclass(frozen=True)
class Examples:
    """Pictures to keep something of.

    Attributes:
        images: (N, C, S, S) in [0, 1].
        labels: class of each.
        unseen: whether they are test images; else the model drew them itself.
    """

    images: Tensor
    labels: list[int]
    unseen: bool


def examples_of(
    folder: Path, num_classes: int, count: int, seed: int, draw: Callable[[Sequence[int]], Tensor]
) -> Examples:
    """`count` test images of different classes that `seed` chooses; where the data is not here, images of its own.

    Args:
        folder: of the checkpoint, which says what it was trained on.
        num_classes: that it knows.
        count: of images, at most one of each class.
        seed: chooses classes and images.
        draw: makes an image (N, C, S, S) in [0, 1] of each class.
    """
    found = unseen_examples(folder)
    classes = torch.randperm(num_classes, generator=torch.Generator().manual_seed(seed)).tolist()
    if found is None:
        labels = classes[:count]
        return Examples(draw(labels), labels, unseen=False)
    images, labels = found
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    by_class = [order[labels[order] == label] for label in classes]
    rows = [int(found[0]) for found in by_class if len(found)][:count]
    return Examples(images[rows], labels[rows].tolist(), unseen=True)


def lower_half(side: int) -> Tensor:
    """A mask (1, 1, S, S): the lower half is drawn anew."""
    mask = torch.zeros(1, 1, side, side)
    mask[..., side // 2 :, :] = 1
    return mask
