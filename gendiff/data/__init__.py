"""Data sets by name. Some know what each of their images would have been under `do`; each has a card in `cards`."""

from __future__ import annotations

import difflib
import importlib
from typing import Any

from gendiff.errors import InvalidInputError

DATASETS = {
    "pendulum": "gendiff.data.pendulum:Pendulum",
    "glyphs": "gendiff.data.glyphs:Glyphs",
    "handwriting": "gendiff.data.handwriting:Handwriting",
    "morpho-mnist": "gendiff.data.morpho_mnist:MorphoMNIST",
    "mnist": "gendiff.data.mnist:MNIST",
    "fashion-mnist": "gendiff.data.fashion_mnist:FashionMNIST",
    "fashion-mnist-full": "gendiff.data.fashion_mnist:FashionMNISTFull",
    "emoji": "gendiff.data.emoji:Emoji",
    "moving-digits": "gendiff.data.moving:moving_digits",
    "moving-clothes": "gendiff.data.moving:moving_clothes",
    "bouncing-balls": "gendiff.data.bouncing_balls:BouncingBalls",
    "shadow-world": "gendiff.data.shadow_world:ShadowWorld",
    "swap-world": "gendiff.data.swap_world:SwapWorld",
    "buoyancy-world": "gendiff.data.buoyancy_world:BuoyancyWorld",
    "cifar10": "gendiff.data.cifar10:CIFAR10",
    "image-folder": "gendiff.data.image_folder:ImageFolder",
    "video-folder": "gendiff.data.video_folder:VideoFolder",
}
"""Name -> "module:class", or a function that makes one; a module is imported when its dataset is asked for."""


def load_dataset(name: str, split: str = "train", **kwargs: Any) -> Any:
    """The `split` of a dataset by name; its card says which splits there are.

    Args:
        name: one of `DATASETS`.
        split: handed to the class with `kwargs`.

    Raises:
        InvalidInputError: no dataset has that name; the nearest one is named.
    """
    if name not in DATASETS:
        close = difflib.get_close_matches(str(name), DATASETS, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise InvalidInputError(f"unknown dataset {name!r}; known: {', '.join(DATASETS)}.{hint}")
    module, class_name = DATASETS[name].split(":")
    return getattr(importlib.import_module(module), class_name)(split, **kwargs)
