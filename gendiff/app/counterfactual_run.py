"""One counterfactual question from loaded model to finished files, for the command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from gendiff.causal.intervention import InterventionError, check_interventions
from gendiff.pipelines.base import pipeline
from gendiff.pipelines.counterfactual import CounterfactualPipeline, CounterfactualPipelineOutput
from gendiff.pipelines.images import to_tensor

from .checkpoint_data import checkpoint_dataset
from .pictures import grid, png_bytes, strip, to_pil
from .run_record import run_record

# Side in screen pixels, about, that a picture is enlarged to in grids.
SHOWN = 160
PREDICTION = ("guidance_scale", "guidance_mode", "allow_extrapolation")
"""Options of the call that prediction alone takes too."""


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
        ValueError: anything about the question that does not fit the model; before any sampling.
        OSError: the picture or the model cannot be read.
    """
    if question.num_images < 1:
        raise ValueError(f"--num-images must be at least 1, got {question.num_images}.")
    logging.disable_progress_bar()  # of loading; sampling has its own
    pipe = pipeline("counterfactual", question.model, device=question.device)
    _check_sweep(pipe, question)
    dataset = _own_data(question.model)
    images, indices = _images(question, pipe, dataset)
    answer = pipe(
        images,
        question.interventions,
        labels=question.labels or None,
        generator=[torch.Generator().manual_seed(question.seed + i) for i in range(len(images))],
        output_type="pt",
        **question.options,
    )
    assert isinstance(answer, CounterfactualPipelineOutput)
    after = answer.images.cpu()
    record: dict[str, Any] = {
        "test_images": indices,
        "factors": {"factual": _plain(answer.factual), "counterfactual": _plain(answer.counterfactual)},
    }
    if dataset is not None:
        pairs = {"factual": images, "counterfactual": after}
        record["pixels"] = {name: _plain(dataset.read(2 * pair - 1)) for name, pair in pairs.items()}
    columns = {"factual": images, _title(question.interventions): after}
    truth = None if indices is None else _truth(dataset, indices, question.interventions)
    if truth is not None:
        columns["truth"] = truth
        record["l1_to_truth"] = (255 * (after - truth).abs().mean(dim=(1, 2, 3))).tolist()
    files = _pictures(images, after, columns)
    if question.sweep is not None:
        files["sweep.png"] = _sweep(pipe, question, answer)
        record["sweep"] = {"variable": question.sweep[0], "values": question.sweep[1]}
    files["run.json"] = run_record("counterfactual", arguments, answer.stats, **record)
    return files, _summary(answer.factual, answer.counterfactual)


def _check_sweep(pipe: CounterfactualPipeline, question: Question) -> None:
    if question.sweep is None:
        return
    name, values = question.sweep
    if name in question.interventions:
        raise ValueError(f"{name!r} is in --do and in --sweep.")
    allow = question.options.get("allow_extrapolation", False)
    check_interventions(pipe.graph, {name: values}, len(values), allow_extrapolation=allow)


def _own_data(model: str) -> Any | None:
    """The model's own data, whose read-outs measure a picture; None where it is unknown or cannot be had."""
    try:
        return checkpoint_dataset(model)
    except (ValueError, ImportError, FileNotFoundError):
        return None


def _images(question: Question, pipe: CounterfactualPipeline, dataset: Any) -> tuple[Tensor, list[int] | None]:
    """Pictures (B, C, S, S) in [0, 1], and their places in the test data if they come from there."""
    channels, size = pipe.sample_shape[:2]
    if question.image is not None:
        try:
            with Image.open(question.image) as picture:
                picture.load()
        except UnidentifiedImageError as error:
            raise ValueError(f"{question.image} is not a picture.") from error
        return (to_tensor(picture, channels, size) + 1) / 2, None
    if dataset is None:
        raise ValueError(f"no test images of {question.model} can be had here: give --image.")
    count = len(dataset)
    if question.num_images > count:
        raise ValueError(f"--num-images must be at most {count}, the number of test images, got {question.num_images}.")
    chosen = torch.randperm(count, generator=torch.Generator().manual_seed(question.seed))[: question.num_images]
    return dataset.images[chosen].float() / 255, chosen.tolist()


def _truth(dataset: Any, indices: list[int], interventions: Mapping[str, float]) -> Tensor | None:
    """True counterfactuals (B, C, S, S) in [0, 1], or None where the data has none for these variables."""
    try:
        pictures = [dataset.counterfactual(index, interventions)[0] for index in indices]
    except InterventionError:
        return None
    return (torch.stack(pictures) + 1) / 2


def _pictures(before: Tensor, after: Tensor, columns: Mapping[str, Tensor]) -> dict[str, bytes]:
    """factual.png and counterfactual.png in the images' own size, numbered if many, and the grid of all."""
    suffixes = [""] if len(before) == 1 else [f"-{i:02d}" for i in range(len(before))]
    files = {f"factual{suffix}.png": png_bytes(to_pil(image)) for suffix, image in zip(suffixes, before, strict=True)}
    files |= {
        f"counterfactual{suffix}.png": png_bytes(to_pil(image)) for suffix, image in zip(suffixes, after, strict=True)
    }
    rows = [[to_pil(image, _scale(image)) for image in row] for row in zip(*columns.values(), strict=True)]
    return files | {"grid.png": png_bytes(grid(rows, column_labels=list(columns)))}


def _sweep(pipe: CounterfactualPipeline, question: Question, answer: CounterfactualPipelineOutput) -> bytes:
    """Strip of the first picture under the joint intervention with one more variable varied."""
    assert question.sweep is not None
    name, values = question.sweep
    together = {key: [value] * len(values) for key, value in question.interventions.items()} | {name: values}
    options = {key: question.options[key] for key in PREDICTION if key in question.options}
    state = answer.state.repeated(0, len(values))
    images = pipe.predict(state, together, output_type="pt", **options).images
    return png_bytes(strip([to_pil(image, _scale(image)) for image in images], [f"{name}={v:g}" for v in values]))


def _scale(image: Tensor) -> int:
    return max(1, SHOWN // image.shape[-1])


def _plain(values: Mapping[str, Tensor]) -> dict[str, list[float]]:
    return {name: value.tolist() for name, value in values.items()}


def _title(interventions: Mapping[str, float]) -> str:
    return "do(" + ", ".join(f"{name}={value:g}" for name, value in interventions.items()) + ")"


def _summary(factual: Mapping[str, Tensor], counterfactual: Mapping[str, Tensor]) -> str:
    lines = [f"{name:14s} {factual[name][0].item():9.2f} -> {counterfactual[name][0].item():9.2f}" for name in factual]
    return "\n".join(lines)
