"""Classes as they are typed after --class, and as they are written below pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

MOST_CLASSES = 100
"""That are drawn unasked."""


def class_of(word: str, known: Sequence[str]) -> int | str:
    """A typed class: a number, unless a class is called so."""
    return int(word) if word.isdecimal() and word not in known else word


def every_class(pipe: Any, model: str) -> list[int]:
    """All classes of a pipeline, for who asked for none.

    Raises:
        ValueError: there are too many to draw unasked.
    """
    if pipe.num_classes > MOST_CLASSES:
        raise ValueError(f"{model} knows {pipe.num_classes} classes: choose some with --class.")
    return list(range(pipe.num_classes))


def class_name(pipe: Any, label: int) -> str:
    """Name of a class, or its number where it has none; "" for no class, which is -1."""
    if label < 0:
        return ""
    return pipe.class_names[label] if pipe.class_names else str(label)
