"""One counterfactual question from loaded model to finished files, for the command line."""

from __future__ import annotations

import io
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from gendiff.pipelines.base import pipeline
from gendiff.pipelines.counterfactual import CounterfactualPipeline
from gendiff.pipelines.images import to_tensor

from .checkpoint_data import checkpoint_dataset
from .pictures import grid, strip, to_pil

# Side in screen pixels, about, that a picture is enlarged to in grids.
SHOWN = 160
VERSIONS = ("gendiff", "torch", "diffusers", "accelerate", "numpy")


@dataclass(frozen=True)
class Question:
    """What to ask of which picture.

    Attributes:
        model: built-in checkpoint, folder or hub repository.
        image: file of the picture; None for `num_images` test images that `seed` chooses.
        interventions: raw values by name, one joint intervention.
        sweep: name and values of one more variable, or None.
        labels: known values of the picture by name.
        num_images: number of test images.
        seed: chooses the test images and draws random noise.
        device: e.g. "cuda"; None for the CPU.
        options: further arguments of the pipeline's call.
    """

    model: str
    image: Path | None
    interventions: Mapping[str, float]
    sweep: tuple[str, list[float]] | None
    labels: Mapping[str, float]
    num_images: int = 1
    seed: int = 0
    device: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


def run(question: Question, arguments: Mapping[str, Any]) -> tuple[dict[str, bytes], str]:
    """Answer `question`.

    Args:
        arguments: as typed, recorded in run.json.

    Returns: content by file name, and a summary for the terminal.

    Raises:
        ValueError: anything about the question that does not fit the model.
        OSError: the picture or the model cannot be read.
    """
    if question.num_images < 1:
        raise ValueError(f"--num-images must be at least 1, got {question.num_images}.")
    pipe = pipeline("counterfactual", question.model, device=question.device)
    images, indices = _images(question, pipe)
    call = {"labels": question.labels or None, "output_type": "pt", **question.options}
    generators = [torch.Generator().manual_seed(question.seed + i) for i in range(len(images))]
    answer = pipe(images, question.interventions, generator=generators, **call)

    files = {}
    suffixes = [""] if len(images) == 1 else [f"-{i:02d}" for i in range(len(images))]
    for suffix, before, after in zip(suffixes, images, answer.images, strict=True):
        files[f"factual{suffix}.png"] = _png(to_pil(before))
        files[f"counterfactual{suffix}.png"] = _png(to_pil(after))
    scale = max(1, SHOWN // images.shape[-1])
    title = _title(question.interventions)
    rows = [[to_pil(image, scale) for image in pair] for pair in zip(images, answer.images, strict=True)]
    record = {
        "task": "counterfactual",
        "arguments": {name: str(value) if isinstance(value, Path) else value for name, value in arguments.items()},
        "versions": {name: version(name) for name in VERSIONS} | {"python": platform.python_version()},
        "test_images": indices,
        "factors": {"factual": _plain(answer.factual), "counterfactual": _plain(answer.counterfactual)},
        "stats": asdict(answer.stats),
    }
    columns = ["factual", title]
    dataset = _own_data(question.model)
    if dataset is not None:
        pairs = {"factual": images, "counterfactual": answer.images.cpu()}
        record["pixels"] = {name: _plain(dataset.read(2 * pair - 1)) for name, pair in pairs.items()}
    if indices is not None:
        truth = _truth(dataset, indices, question.interventions)
        if truth is not None:
            rows = [[*row, to_pil(image, scale)] for row, image in zip(rows, truth, strict=True)]
            columns.append("truth")
            record["l1_to_truth"] = (255 * (answer.images.cpu() - truth).abs().mean(dim=(1, 2, 3))).tolist()
    files["grid.png"] = _png(grid(rows, column_labels=columns))
    if question.sweep is not None:
        name, values = question.sweep
        swept = _sweep(pipe, question, images[:1], call)
        captions = [f"{name}={value:g}" for value in values]
        files["sweep.png"] = _png(strip([to_pil(image, scale) for image in swept], captions))
        record["sweep"] = {"variable": name, "values": values}
    files["run.json"] = (json.dumps(record, indent=2) + "\n").encode()
    return files, _summary(answer.factual, answer.counterfactual)


def _images(question: Question, pipe: CounterfactualPipeline) -> tuple[Tensor, list[int] | None]:
    """Pictures (B, C, S, S) in [0, 1], and their places in the test data if they come from there."""
    channels, size = pipe.sample_shape[:2]
    if question.image is not None:
        try:
            with Image.open(question.image) as picture:
                picture.load()
        except UnidentifiedImageError as error:
            raise ValueError(f"{question.image} is not a picture.") from error
        return (to_tensor(picture, channels, size) + 1) / 2, None
    dataset = checkpoint_dataset(question.model)
    count = len(dataset)
    if question.num_images > count:
        raise ValueError(f"--num-images must be at most {count}, the number of test images, got {question.num_images}.")
    chosen = torch.randperm(count, generator=torch.Generator().manual_seed(question.seed))[: question.num_images]
    return dataset.images[chosen].float() / 255, chosen.tolist()


def _sweep(pipe: CounterfactualPipeline, question: Question, image: Tensor, call: Mapping[str, Any]) -> Tensor:
    """(COUNT, C, S, S): the first picture under the joint intervention with one more variable varied."""
    assert question.sweep is not None
    name, values = question.sweep
    if name in question.interventions:
        raise ValueError(f"{name!r} is in --do and in --sweep.")
    together = {key: [value] * len(values) for key, value in question.interventions.items()} | {name: values}
    return pipe(
        image.expand(len(values), -1, -1, -1),
        together,
        generator=[torch.Generator().manual_seed(question.seed) for _ in values],
        **call,
    ).images


def _truth(dataset: Any, indices: list[int], interventions: Mapping[str, float]) -> Tensor | None:
    """True counterfactuals (B, C, S, S) in [0, 1], or None where the data has none for these variables."""
    try:
        pictures = [dataset.counterfactual(index, interventions)[0] for index in indices]
    except ValueError:
        return None
    return (torch.stack(pictures) + 1) / 2


def _own_data(model: str) -> Any | None:
    """The model's own data, whose read-outs measure a picture; None where it is unknown or cannot be had."""
    try:
        return checkpoint_dataset(model)
    except (ValueError, ImportError):
        return None


def _plain(values: Mapping[str, Tensor]) -> dict[str, list[float]]:
    return {name: value.tolist() for name, value in values.items()}


def _title(interventions: Mapping[str, float]) -> str:
    return "do(" + ", ".join(f"{name}={value:g}" for name, value in interventions.items()) + ")"


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _summary(factual: Mapping[str, Tensor], counterfactual: Mapping[str, Tensor]) -> str:
    return "\n".join(
        f"{name:14s} {factual[name][0].item():10.3f} -> {counterfactual[name][0].item():10.3f}" for name in factual
    )
