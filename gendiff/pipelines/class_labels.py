"""Classes as people name them, to numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from .registry import suggest


def class_numbers(
    given: Any, per_label: int, names: Sequence[str], num_classes: int, null: int | None = None
) -> Tensor:
    """(B,) int64 on the CPU, -1 = no class.

    Args:
        given: a class or several, by number or name; None and -1 stand for none.
        per_label: images for each.
        names: of the classes; may be empty.
        num_classes: how many there are.
        null: a further number that stands for none.

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
    numbers = [_number_or_none(label, names, num_classes, null) for label in labels]
    return torch.tensor(numbers).repeat_interleave(per_label)


def class_number(label: Any, names: Sequence[str], num_classes: int) -> int:
    """The number of a class, from itself or from its name.

    Args:
        label: 0 .. num_classes - 1, or one of `names`.
        names: of the classes; may be empty.
        num_classes: how many there are.

    Raises:
        ValueError: an unknown name or number, or something else.
    """
    if isinstance(label, str):
        if label not in names:
            raise ValueError(f"class_labels has {label!r}; {suggest(label, names)}")
        return list(names).index(label)
    if not num_classes:
        raise ValueError(f"class_labels must be None: the model knows no classes, got {label!r}.")
    if not _is_whole(label) or not 0 <= label < num_classes:
        named = ", or a name" if names else ""
        raise ValueError(f"class_labels must be 0 to {num_classes - 1}{named}, got {label!r}.")
    return int(label)


def names_by_number(class_names: Sequence[str] | Mapping[str, str]) -> list[str]:
    """Names of classes in order, also from a saved config, which comes back sorted as texts, "10" before "2"."""
    if isinstance(class_names, Mapping):
        return [class_names[number] for number in sorted(class_names, key=int)]
    return list(class_names)


def _number_or_none(label: Any, names: Sequence[str], num_classes: int, null: int | None) -> int:
    """-1 for no class."""
    if label is None:
        return -1
    if not isinstance(label, str) and not _is_whole(label):
        raise TypeError(f"class_labels must be whole numbers or names, got {label!r}.")
    return -1 if label in (-1, null) else class_number(label, names, num_classes)


def _is_whole(label: Any) -> bool:
    return isinstance(label, Integral) and not isinstance(label, bool)
