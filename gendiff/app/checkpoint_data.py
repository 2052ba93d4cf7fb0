"""The data a checkpoint was trained on, with its ground truth."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from gendiff.data import load_dataset
from gendiff.pipelines.base import GendiffPipeline


def checkpoint_dataset(model: str | os.PathLike[str], split: str = "test") -> Any:
    """Test images, truths and read-outs of a checkpoint's own data.

    Where the data itself must be fetched by the user and is not there, the samples that ship with the package are
    returned instead.

    Args:
        model: a built-in checkpoint, a folder or a hub repository.
        split: "train", "validation" or "test".

    Raises:
        ValueError: the checkpoint does not say what it was trained on.
    """
    folder = Path(model if os.path.isdir(model) else GendiffPipeline.download(model))
    recipe = folder / "recipe.yaml"
    if not recipe.is_file():
        raise ValueError(f"{folder} holds no recipe.yaml, so its data is unknown; pass an image of your own.")
    arguments = dict(yaml.safe_load(recipe.read_text(encoding="utf-8"))["data"])
    name = arguments.pop("name")
    try:
        return load_dataset(name, split=split, **arguments)
    except FileNotFoundError:
        return load_dataset(name, split="samples")
