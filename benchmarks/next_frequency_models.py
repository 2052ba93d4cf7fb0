"""Models over stages by name, folder or run, and what tells them apart: their recipe's name and its seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from calls import Work, load
from provenance import checkpoint_sha256, model_folder

from gendiff.pipelines.next_frequency import NextFrequencyPipeline


@dataclass(frozen=True)
class Model:
    """A saved pipeline.

    Attributes:
        folder: of the pipeline.
        row: name of its recipe, which models of several seeds share.
        seed: of its recipe.
        sha256: of configs and weights.
    """

    folder: Path
    row: str
    seed: int
    sha256: str


def find_models(names: Sequence[str]) -> list[Model]:
    """Models sorted by recipe, in the order in which recipes are first named, then by seed.

    Args:
        names: built-in names, folders of a pipeline, or folders of a run that has ended.

    Raises:
        ValueError, OSError: there is no such model, it does not say how it was made, or two are of one recipe and seed.
    """
    found: dict[tuple[str, int], Model] = {}
    for name in names:
        folder = _pipeline_folder(name)
        recipe = _recipe(folder, name)
        row, seed = str(recipe["name"]), int(recipe.get("seed", 0))
        if (row, seed) in found:
            raise ValueError(f"--model {name} and {found[row, seed].folder} are both {row} with seed {seed}.")
        found[row, seed] = Model(folder, row, seed, checkpoint_sha256(folder))
    order = list(dict.fromkeys(row for row, _ in found))
    return sorted(found.values(), key=lambda model: (order.index(model.row), model.seed))


def open_model(model: Model, device: str) -> NextFrequencyPipeline:
    """The pipeline, in float32.

    Raises:
        ValueError, OSError: it cannot be loaded, or is something else.
    """
    pipe = load(Work(model=str(model.folder), device=device))
    if not isinstance(pipe, NextFrequencyPipeline):
        raise ValueError(f"{model.folder} holds a {type(pipe).__name__}; a NextFrequencyPipeline is needed.")
    return pipe


def facts_of(pipe: NextFrequencyPipeline) -> dict[str, Any]:
    """What a table says of a model besides its scores."""
    stages = list(pipe.vqvae.stages)
    return {
        "stages": stages,
        "tokens": sum(side**2 for side in stages),
        "bands": pipe.vqvae.config["band_spacing"],
        "codes": pipe.vqvae.config["codebook_size"],
        "transformer_params": sum(parameter.numel() for parameter in pipe.transformer.parameters()),
        "tokenizer_params": sum(parameter.numel() for parameter in pipe.vqvae.parameters()),
    }


def _pipeline_folder(name: str) -> Path:
    path = Path(name)
    if path.is_dir() and not (path / "model_index.json").is_file():
        if not (path / "final" / "model_index.json").is_file():
            raise ValueError(f"--model {name} holds neither a pipeline nor a finished run of one.")
        path /= "final"
    return path if path.is_dir() else model_folder(name)


def _recipe(folder: Path, name: str) -> dict[str, Any]:
    for path in (folder / "recipe.yaml", folder.parent / "recipe.yaml"):
        if path.is_file():
            return yaml.safe_load(path.read_text(encoding="utf-8"))
    raise ValueError(f"--model {name} holds no recipe.yaml, which says its name and seed.")
