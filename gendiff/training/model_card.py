"""The README.md of a trained model."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import yaml

from .recipe import Recipe, builtin_recipes


def write_model_card(
    folder: Path,
    recipe: Recipe,
    losses: Mapping[str, float],
    seconds: float,
    parameters: Mapping[str, int],
    world: int,
    measured: str | None = None,
) -> None:
    """Write README.md and recipe.yaml beside the weights.

    Args:
        folder: the saved pipeline.
        recipe: what was trained.
        losses: the last logged means by term.
        seconds: of training, all resumptions together.
        parameters: their number by trained module.
        world: number of processes.
        measured: Markdown of what was measured on the final weights.
    """
    (folder / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    front = {
        "license": recipe.licence,
        "library_name": "diffusers",
        "tags": ["gendiff", recipe.task],
    }
    facts = {
        "task": recipe.task,
        "data": _inline(recipe.data),
        "steps": f"{recipe.train.steps:,}",
        "samples seen": f"{_samples(recipe, world):,}",
        "seed": recipe.seed,
        "training time": f"{seconds:,.0f} s",
        "hardware": _hardware(world),
        "weights": f"{_weights(recipe)}, safetensors",
        "parameters": ", ".join(f"{name} {count:,}" for name, count in parameters.items()),
        "versions": _versions(),
        "licence": recipe.licence,
    }
    (folder / "README.md").write_text(
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n\n"
        f"# {recipe.name}\n\n"
        f"{_table(('', ''), facts)}\n"
        f"## Use\n\n{_use(recipe)}\n"
        + (f"## Measured\n\n{measured}\n" if measured else "")
        + f"## Training\n\nTrained by `{_command(world)}` with the recipe below; on the same hardware and versions it "
        "gives the same weights again. Means over the last logged steps, of the weights before averaging:\n\n"
        f"{_table(('term', 'value'), {name: f'{value:.4g}' for name, value in losses.items()})}\n"
        f"```yaml\n{recipe.to_yaml()}```\n",
        encoding="utf-8",
    )


def _use(recipe: Recipe) -> str:
    """How the model is loaded: a classifier or a tokenizer on its own, everything else as a pipeline."""
    if recipe.task == "frequency-tokenizer":
        return (
            "```python\nfrom gendiff.models.frequency_vq import FrequencyVQModel\n\n"
            'vqvae = FrequencyVQModel.from_pretrained("path/of/this/folder").eval()\n'
            "tokens = vqvae.encode(images).tokens  # images (B, C, S, S) in [-1, 1]; a grid for each stage\n"
            "pictures = vqvae.decode(tokens)  # of the first stages alone: decode(tokens[:3])\n```\n\n"
            "A transformer over its tokens is trained by a recipe of task next-frequency that says\n"
            "`models: {vqvae: {path: path/of/this/folder}}`.\n"
        )
    if recipe.task != "classification":
        return (
            "```python\nimport gendiff\n\n"
            f'pipeline = gendiff.load_pipeline("{recipe.name}")  # or the path of this folder\n```\n'
        )
    code = (
        "```python\nfrom gendiff.models.image_classifier import ImageClassifier\n\n"
        'classifier = ImageClassifier.from_pretrained("path/of/this/folder").eval()\n'
        "logits = classifier(images)  # images (B, C, S, S) in [-1, 1]; classifier.config.classes names the columns\n"
        "features = classifier.features(images)\n```\n"
    )
    if recipe.name not in builtin_recipes():
        return code
    measure = f"gendiff evaluate fd --samples SAMPLES --reference REFERENCE --extractor {recipe.name}"
    return f"{code}\nIts features as a yardstick, written FD[{recipe.name}]:\n\n```sh\n{measure}\n```\n"


def _table(head: tuple[str, str], rows: Mapping[str, Any]) -> str:
    lines = [f"| {head[0]} | {head[1]} |", "| --- | --- |", *(f"| {key} | {value} |" for key, value in rows.items())]
    return "\n".join(lines) + "\n"


def _inline(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in values.items())


def _samples(recipe: Recipe, world: int) -> int:
    train = recipe.train
    return train.steps * train.batch_size * train.gradient_accumulation * world


def _weights(recipe: Recipe) -> str:
    averaged = recipe.train.ema_decay > 0
    return f"{f'moving average ({recipe.train.ema_decay:g})' if averaged else 'last step'}, {recipe.train.save_dtype}"


def _command(world: int) -> str:
    launch = f"torchrun --nproc_per_node {world} -m gendiff" if world > 1 else "gendiff"
    return f"{launch} train recipe.yaml"


def _hardware(world: int) -> str:
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    else:
        cores = os.cpu_count()
        device = f"CPU ({platform.machine()}, {cores} cores), torch threads: {torch.get_num_threads()}"
    return f"{world} process{'es' if world > 1 else ''} on {device}"


def _versions() -> str:
    known = [f"Python {sys.version.split()[0]}"]
    for package in ("gendiff", "torch", "diffusers", "accelerate"):
        try:
            known.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            known.append(f"{package} (from source)")
    return ", ".join(known)
