"""Images by class from loaded model to finished files, for the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils import logging

from gendiff.pipelines.base import pipeline
from gendiff.pipelines.image_generation import ImageGenerationPipeline
from gendiff.samplers.solvers import solver

from .pictures import grid, png_bytes, to_pil
from .run_record import run_record

SHOWN = 84
"""Side in screen pixels, about, that a picture is enlarged to in the grid."""


@dataclass(frozen=True)
class Order:
    """What to draw.

    Attributes:
        model: built-in checkpoint, folder or hub repository.
        classes: names or numbers; empty for every class the model knows.
        num_images: images of each class.
        steps: of the walk.
        scheduler: one of `gendiff.samplers.solvers.SOLVERS`; None for the model's own.
        guidance_scale: 1 is off.
        seed: image i is drawn from seed + i.
        device: e.g. "cuda"; None for the CPU.
    """

    model: str
    classes: Sequence[str] = ()
    num_images: int = 4
    steps: int = 50
    scheduler: str | None = None
    guidance_scale: float = 1.0
    seed: int = 0
    device: str | None = None


def run(order: Order, arguments: Mapping[str, Any]) -> tuple[dict[str, bytes], str]:
    """Draw what `order` says.

    Args:
        arguments: as typed, recorded in run.json.

    Returns: content by file name, and a summary for the terminal.

    Raises:
        ValueError: anything about the order that does not fit the model; before any sampling.
        OSError: the model cannot be read.
    """
    if order.num_images < 1:
        raise ValueError(f"--num-images must be at least 1, got {order.num_images}.")
    logging.disable_progress_bar()  # of loading; sampling has its own
    pipe = pipeline("image-generation", order.model, device=order.device)
    if order.scheduler is not None:
        pipe.scheduler = solver(order.scheduler, pipe.scheduler)
    labels = [_label(name) for name in order.classes] or list(range(len(pipe.class_names)))
    count = order.num_images * max(1, len(labels))
    output = pipe(
        labels or None,
        num_images_per_prompt=order.num_images,
        num_inference_steps=order.steps,
        guidance_scale=order.guidance_scale,
        generator=[torch.Generator().manual_seed(order.seed + i) for i in range(count)],
        output_type="pt",
    )
    images = output.images.cpu()
    names = _names(pipe, output.class_labels.tolist())
    scale = max(1, SHOWN // images.shape[-1])
    rows = [[to_pil(image, scale) for image in row] for row in images.split(order.num_images)]
    files = {f"images/{i:03d}.png": png_bytes(to_pil(image)) for i, image in enumerate(images)}
    files["grid.png"] = png_bytes(grid(rows, row_labels=names[:: order.num_images] if labels else None))
    files["run.json"] = run_record("image-generation", arguments, output.stats, classes=names)
    cost = f"{output.stats.network_calls} network calls, {output.stats.seconds:.1f} s"
    return files, f"{count} images, {cost}"


def _label(name: str) -> int | str:
    return int(name) if name.isdecimal() else name


def _names(pipe: ImageGenerationPipeline, labels: Sequence[int]) -> list[str]:
    return [pipe.class_names[label] if label >= 0 else "" for label in labels]
