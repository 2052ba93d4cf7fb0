"""Classes as people name them, to numbers."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from .registry import suggest


def class_numbers(given: Any, per_label: int, names: Sequence[str], num_classes: int) -> Tensor:
    """(B,) int64 on the CPU, -1 = no class.

    Args:
        given: a class or several, by number or name; None, -1 and `num_classes` stand for none.
        per_label: images for each.
        names: of the classes; may be empty.
        num_classes: how many there are.

    Raises:
        TypeError: neither a number nor a name.
        ValueError: an unknown name or number, or no class at all.
    """
    if isinstance(per_label, bool) or not isinstance(per_label, int) or per_label < 1:
        raise ValueError(f"num_images_per_prompt must be a whole number of at least 1, got {per_label!r}.")
    if isinstance(given, Tensor):
        if given.is_floating_point() or given.dtype == torch.bool:
            raise TypeError(f"class_labels must be whole numbers or names, got {given.dtype}.")
        given = given.tolist()
    labels = [given] if given is None or isinstance(given, Real | str) else list(given)
    if not labels:
        raise ValueError("class_labels must hold at least one class, got none.")
    numbers = [_number(label, names, num_classes) for label in labels]
    return torch.tensor(numbers).repeat_interleave(per_label)


def _number(label: Any, names: Sequence[str], num_classes: int) -> int:
    if label is None:
        return -1
    if isinstance(label, str):
        if label not in names:
            raise ValueError(f"class_labels has {label!r}; {suggest(label, names)}")
        return names.index(label)
    if isinstance(label, bool) or not isinstance(label, Integral):
        raise TypeError(f"class_labels must be whole numbers or names, got {label!r}.")
    number = int(label)
    if not -1 <= number <= num_classes:
        named = ", or a name" if names else ""
        raise ValueError(
            f"class_labels must be from 0 to {num_classes - 1}{named}, or None for no class, got {number}."
        )
    return -1 if number == num_classes else number
