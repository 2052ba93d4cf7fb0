"""What a model over stages is worth: its tokenizer by stage, its transformer in nats, and its samples."""

from __future__ import annotations

from typing import Any

import torch
from next_frequency_yardstick import Yardstick, drawn
from torch import Tensor

from gendiff.data.rendered import from_bytes
from gendiff.models.frequency_vq import FrequencyVQModel
from gendiff.pipelines.next_frequency import NextFrequencyPipeline
from gendiff.training.image_data import fair_sample
from gendiff.training.next_frequency import objective
from gendiff.training.tokenizer_health import measure_stages

BATCH = 250


@torch.no_grad()
def reconstructed(vqvae: FrequencyVQModel, images: Tensor) -> Tensor:
    """Images (N, C, S, S) uint8 through all stages and back."""
    return torch.cat([as_bytes(vqvae.decode(vqvae.encode(batch).tokens)) for batch in _batches(vqvae, images)])


@torch.no_grad()
def tokenizer_cells(vqvae: FrequencyVQModel, dataset: Any, count: int) -> list[dict[str, Any]]:
    """PSNR after each stage and without quantiser, and codes that each stage uses, on `count` images of `dataset`.

    Returns: "psnr" in dB, the mean over images of each image's own, with "stage", or "of": "unquantised"; "codes" with
    "stage" and "most", the number of codes or of tokens seen, whichever is less.
    """
    cells: list[dict[str, Any]] = []
    for found in measure_stages(vqvae, dataset, count):
        seen = {"stage": found.stage, "n": count}
        cells.append({"metric": "psnr", "value": found.psnr, **seen})
        cells.append({"metric": "codes", "value": found.codes, "most": found.possible, **seen})
    decibels = []
    for images in _batches(vqvae, dataset.images[list(fair_sample(dataset, count))]):
        error = (vqvae.decode(f_hat=vqvae.encode(images).f) - images).square().flatten(1).mean(dim=1)
        decibels.append(10 * torch.log10(4 / error.clamp(min=1e-10)))  # pixels span 2
    value = torch.cat(decibels).double().mean().item()
    return [*cells, {"metric": "psnr", "of": "unquantised", "value": value, "n": count}]


@torch.no_grad()
def nats_cells(pipe: NextFrequencyPipeline, dataset: Any, count: int) -> list[dict[str, Any]]:
    """Cross-entropy of true tokens of `count` images given the true stages before them and the class, in nats.

    Returns: "nats" a token with "stage", "nats" a token over all stages, and "nats_image".
    """
    models = {"transformer": pipe.transformer, "vqvae": pipe.vqvae}
    rows = list(fair_sample(dataset, count))
    images, labels = dataset.images[rows], dataset.labels[rows]
    unused, sums = torch.Generator(), {}
    for batch, some in zip(_batches(pipe.vqvae, images), labels.split(BATCH), strict=True):
        losses = objective(models, {"image": batch, "label": some.to(batch.device)}, unused, label_dropout=0.0)
        for name, value in losses.items():
            sums[name] = sums.get(name, 0.0) + value.item() * len(batch)
    cells: list[dict[str, Any]] = []
    for stage, tokens in enumerate(pipe.transformer.counts):
        value = sums[f"nats_{stage}"] / count
        cells.append({"metric": "nats", "stage": stage, "value": value, "n": count * tokens})
    every, tokens = sums["nats"] / count, sum(pipe.transformer.counts)
    cells.append({"metric": "nats", "value": every, "n": count * tokens})
    cells.append({"metric": "nats_image", "value": every * tokens, "n": count})
    return cells


def reconstruction_cells(
    vqvae: FrequencyVQModel, yardstick: Yardstick, training: tuple[Tensor, Tensor], num: int
) -> list[dict[str, Any]]:
    """Scores of what the tokenizer makes of real images: what a perfect transformer could not beat.

    Args:
        training: images (N, C, S, S) uint8 and classes (N,) of the training split.
        num: images of each split that are taken.
    """
    cells = []
    for name, (images, labels) in {"test": (yardstick.images, yardstick.labels), "training": training}.items():
        rows = drawn(num, len(images), 0)
        pictures = reconstructed(vqvae, images[rows])
        cells += yardstick.cells(pictures, labels[rows], of=f"reconstructions of {name} images")
    return cells


def as_bytes(images: Tensor) -> Tensor:
    """[-1, 1] to uint8 on the CPU, as the pipeline rounds."""
    return ((images.float() / 2 + 0.5).clamp(0, 1) * 255).round().byte().cpu()


def check_shape(pipe: NextFrequencyPipeline, images: Tensor, classes: int) -> None:
    """Raise ValueError unless a model draws images of this shape and number of classes."""
    if pipe.sample_shape != tuple(images.shape[1:]) or pipe.num_classes != classes:
        raise ValueError(
            f"models must draw {tuple(images.shape[1:])} of {classes} classes, as the data has them, got "
            f"{pipe.sample_shape} of {pipe.num_classes}."
        )


def _batches(vqvae: FrequencyVQModel, images: Tensor) -> list[Tensor]:
    """In [-1, 1], on the tokenizer's device."""
    return [from_bytes(batch).to(vqvae.device) for batch in images.split(BATCH)]
