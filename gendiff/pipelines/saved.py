"""What a saved pipeline's folder must hold, checked before any of it is loaded. Needs no torch."""

from __future__ import annotations

import json
import os
from collections.abc import Container
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def read_index(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """`model_index.json` of a saved pipeline.

    Raises:
        OSError: the folder or the file is missing.
        ValueError: the file is not the index of a pipeline.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder.")
    path = folder / "model_index.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is not a saved pipeline: it has no model_index.json.")
    index = _read_json(path)
    if not isinstance(index, dict) or not isinstance(index.get("_class_name"), str):
        raise ValueError(f"{path} does not name a pipeline class.")
    return index


def components(index: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Component name -> (library, class name), for the components that were saved."""
    return {name: (pair[0], pair[1]) for name, pair in index.items() if isinstance(pair, list) and all(pair)}


def weight_files(folder: Path) -> list[Path]:
    """Safetensors files of one component, sorted."""
    return sorted(folder.glob("*.safetensors"))


def check_folder(folder: str | os.PathLike[str], skip: Container[str] = ()) -> dict[str, Any]:
    """Read a saved pipeline's index after checking that every component is whole and holds no code.

    Args:
        folder: a folder written by `save_pretrained`.
        skip: names of components that the caller supplies, so that the folder need not hold them.

    Raises:
        OSError: a file is missing.
        ValueError: a file is damaged, or weights come as a pickle, which can run code when it is read.
    """
    index = read_index(folder)
    for name, (_, class_name) in components(index).items():
        if name not in skip:
            _check_component(Path(folder) / name, class_name)
    return index


def _check_component(folder: Path, class_name: str) -> None:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is missing; it should hold the {class_name}.")
    for path in folder.glob("*.json"):
        _read_json(path)
    weights = weight_files(folder)
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
    if pickles and not weights:
        raise ValueError(
            f"{folder} holds its weights as a pickle ({pickles[0]}), which can run code when it is read; "
            "only .safetensors files are loaded."
        )
    # Only networks have a config.json; schedulers and tokenizers name theirs differently.
    if (folder / "config.json").is_file() and not weights:
        raise FileNotFoundError(f"{folder} holds no weights (*.safetensors) for the {class_name}.")
    for shards in folder.glob("*.safetensors.index.json"):
        for shard in sorted(set(_read_json(shards)["weight_map"].values())):
            if not (folder / shard).is_file():
                raise FileNotFoundError(f"{folder / shard} is missing; {shards.name} lists it.")
    for path in weights:
        try:
            with safe_open(path, framework="numpy"):
                pass
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged: {error}.") from error


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: not JSON ({error}).") from error
