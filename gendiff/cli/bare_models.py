"""Models that are saved on their own, without a pipeline around them: which ones ship, and what a folder holds."""

from __future__ import annotations

import json
from pathlib import Path

TASKS_BY_CLASS = {"FrequencyVQModel": "frequency-tokenizer", "ImageClassifier": "classification"}
"""Class of a bare model -> the training task that makes it."""


def builtin_models() -> dict[str, Path]:
    """Folders of the bare models of this installation by name, sorted."""
    from gendiff.pipelines.registry import CHECKPOINTS

    return {path.parent.name: path.parent for path in sorted(CHECKPOINTS.glob("*/config.json"))}


def is_bare_model(folder: Path) -> bool:
    """Whether `folder` was written by a model's own `save_pretrained`."""
    return (folder / "config.json").is_file()


def class_of(folder: Path) -> str:
    """Class of the bare model in `folder`, after checking that its weights are there and no pickle.

    Raises:
        FileNotFoundError: no weights.
        ValueError: config.json is damaged or names no class.
    """
    from gendiff.pipelines.saved import weight_files

    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: not JSON ({error}).") from error
    if not isinstance(config, dict) or not isinstance(config.get("_class_name"), str):
        raise ValueError(f"{path} does not name a model class.")
    if not weight_files(folder):
        raise FileNotFoundError(f"{folder} holds no weights (*.safetensors) for the {config['_class_name']}.")
    return config["_class_name"]


def task_of(class_name: str) -> str | None:
    """The training task that makes models of this class."""
    return TASKS_BY_CLASS.get(class_name)
