"""Examples of the data a checkpoint was trained on, with their ground truth."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from gendiff.data import load_dataset
from gendiff.pipelines.base import GendiffPipeline

EXAMPLES = {"handwriting": "samples"}
"""Split that shows a dataset; "test" unless named here. Data that users must fetch ships some samples."""
SHIPPED_PART = {"fashion-mnist-full": "fashion-mnist"}
"""The part of a dataset's training split that comes with the package."""
OF_TRAINING = ("num_images", "experiments")
"""Arguments of a recipe's data that describe its training split only."""


def checkpoint_dataset(model: str | os.PathLike[str]) -> Any:
    """Unseen images, truths and read-outs of a checkpoint's own data; the same on every machine.

    Args:
        model: a built-in checkpoint, a folder or a hub repository.

    Raises:
        ValueError: the checkpoint does not say what it was trained on.
    """
    name, arguments = _data(model)
    kept = {key: value for key, value in arguments.items() if key not in OF_TRAINING}
    return load_dataset(name, split=EXAMPLES.get(name, "test"), **kept)


def training_examples(model: str | os.PathLike[str]) -> Tensor:
    """Images (N, C, S, S) in [0, 1] like those a checkpoint was trained on, as many as every installation has.

    Raises:
        ValueError: the checkpoint does not say what it was trained on.
    """
    name, arguments = _data(model)
    if name in SHIPPED_PART:
        return load_dataset(SHIPPED_PART[name]).images.float() / 255
    return load_dataset(name, **arguments).images.float() / 255


def nearest(images: Tensor, examples: Tensor) -> tuple[Tensor, list[float]]:
    """For each of (B, C, S, S) in [0, 1] the nearest of (N, C, S, S) in [0, 1], and the distance in grey levels.

    It is the mean absolute difference of pixels.
    """
    distance = torch.cdist(images.flatten(1), examples.flatten(1), p=1) / images[0].numel() * 255
    smallest, where = distance.min(dim=1)
    return examples[where], smallest.tolist()


def unseen_examples(model: str | os.PathLike[str]) -> tuple[Tensor, Tensor] | None:
    """Images (N, C, S, S) in [0, 1] of a checkpoint's test split, and their classes (N,) int64.

    Of data that ships in part, the part; None where the data is unknown, has no classes, or is not on this machine.
    """
    try:
        part = SHIPPED_PART.get(_data(model)[0])
        dataset = checkpoint_dataset(model) if part is None else load_dataset(part, split="test")
    except (ValueError, FileNotFoundError):
        return None
    if not hasattr(dataset, "classes"):
        return None
    return dataset.images.float() / 255, dataset.labels


def _data(model: str | os.PathLike[str]) -> tuple[str, dict[str, Any]]:
    """Name and arguments of the data in a checkpoint's recipe."""
    folder = Path(model if os.path.isdir(model) else GendiffPipeline.download(model))
    recipe = folder / "recipe.yaml"
    if not recipe.is_file():
        raise ValueError(f"{folder} holds no recipe.yaml, so its data is unknown; pass an image of your own.")
    arguments = dict(yaml.safe_load(recipe.read_text(encoding="utf-8"))["data"])
    return arguments.pop("name"), arguments
