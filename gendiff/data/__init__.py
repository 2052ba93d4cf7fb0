"""Datasets that know the truth about themselves: images, labels, and what each would have been under `do`."""

from __future__ import annotations

import difflib
import importlib
from typing import Any

DATASETS = {
    "pendulum": "gendiff.data.pendulum:Pendulum",
    "glyphs": "gendiff.data.glyphs:Glyphs",
    "handwriting": "gendiff.data.handwriting:Handwriting",
    "morpho-mnist": "gendiff.data.morpho_mnist:MorphoMNIST",
}
"""Name -> "module:class"; a module is imported when its dataset is asked for."""


def load_dataset(name: str, split: str = "train", **kwargs: Any) -> Any:
    """The `split` (train, validation or test) of a dataset by name.

    Args:
        name: one of `DATASETS`.
        split: handed to the class with `kwargs`.

    Raises:
        ValueError: no dataset has that name; the nearest one is named.
    """
    if name not in DATASETS:
        close = difflib.get_close_matches(str(name), DATASETS, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"unknown dataset {name!r}; known: {', '.join(DATASETS)}.{hint}")
    module, class_name = DATASETS[name].split(":")
    return getattr(importlib.import_module(module), class_name)(split, **kwargs)
