"""Images in stages, coarse to fine, from loaded model to finished files, for the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging

from gendiff.pipelines.base import pipeline
from gendiff.pipelines.next_frequency import NextFrequencyPipelineOutput

from .class_grid import class_grid
from .given_pictures import read_pixels
from .next_frequency_pictures import band_labels, stage_pictures, stages_strip
from .pictures import png_bytes, to_pil
from .run_record import run_record
from .typed_classes import class_name, class_of, every_class

GUIDANCE = ("guidance_scale", "guidance_schedule")


@dataclass(frozen=True)
class Order:
    """What to draw.

    Attributes:
        model: built-in checkpoint, folder or hub repository.
        classes: names or numbers; empty for every class, or for none where there is an image.
        num_images: images of each class.
        image: file of a picture to start from.
        mask: file of what to draw anew of it, white; black is kept.
        stages_strip: also show every image after each stage.
        seed: image i is drawn from seed + i.
        device: e.g. "cuda"; None for the CPU.
        options: further arguments of the pipeline's call; None for its own default.
    """

    model: str
    classes: Sequence[str] = ()
    num_images: int = 4
    image: Path | None = None
    mask: Path | None = None
    stages_strip: bool = False
    seed: int = 0
    device: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.num_images < 1:
            raise ValueError(f"--num-images must be at least 1, got {self.num_images}.")
        if self.mask is not None and self.image is None:
            raise ValueError("--mask needs --image: without one there is nothing to keep.")


def run(order: Order, arguments: Mapping[str, Any]) -> tuple[dict[str, bytes], str]:
    """Draw what `order` says.

    Args:
        arguments: as typed, recorded in run.json.

    Returns: content by file name, and a summary for the terminal.

    Raises:
        ValueError: anything about the order that does not fit the model; before any sampling.
        OSError: the model or a picture cannot be read.
    """
    logging.disable_progress_bar()  # of loading; sampling has its own
    pipe = pipeline("next-frequency", order.model, device=order.device)
    channels, side, _ = pipe.sample_shape
    given = {
        name: read_pixels(path, wanted, side)
        for name, path, wanted in (("image", order.image, channels), ("mask_image", order.mask, 1))
        if path is not None
    }
    labels: list[int | str] = [class_of(word, pipe.class_names) for word in order.classes]
    if not labels and not given:
        labels = [*every_class(pipe, order.model)]
    count = order.num_images * max(1, len(labels))
    output = pipe(
        labels or None,
        num_images_per_prompt=order.num_images,
        **_options(order, bool(labels)),
        **given,
        generator=[torch.Generator().manual_seed(order.seed + i) for i in range(count)],
        output_type="pt",
    )
    assert isinstance(output, NextFrequencyPipelineOutput)
    images = output.images.float().cpu()
    names = [class_name(pipe, label) for label in output.class_labels.tolist()]
    files = {f"images/{i:03d}.png": png_bytes(to_pil(image)) for i, image in enumerate(images)}
    files["grid.png"] = png_bytes(class_grid(images, names, order.num_images, given))
    if order.stages_strip:
        pictures = stage_pictures(pipe.vqvae, output.tokens)
        pictures[-1] = images  # blended pixels included
        files["stages.png"] = png_bytes(stages_strip(pictures, pipe.vqvae, names if any(names) else None))
    plan = output.stats.plan
    walked = zip(plan["stages"], band_labels(pipe.vqvae), strict=False)
    stages = [{"side": p, "tokens": p * p, "band": band} for p, band in walked]
    files["run.json"] = run_record("next-frequency", arguments, output.stats, classes=names, stages=stages)
    return files, _summary(count, output.stats)


def _options(order: Order, has_class: bool) -> dict[str, Any]:
    """Arguments of the call; without a class there is nothing to guide to, and nothing is spent on it."""
    options = {name: value for name, value in order.options.items() if value is not None}
    if has_class:
        return options
    for name in GUIDANCE:
        if name in options:
            raise ValueError(f"{name} {options[name]} needs --class: without a class there is nothing to guide to.")
    return {**options, "guidance_scale": 1.0}


def _summary(count: int, stats: Any) -> str:
    kept = stats.plan["keep_stages"]
    known = f", the first {kept} kept" if kept else ""
    return (
        f"{count} images in {len(stats.plan['stages'])} stages{known}: {stats.network_calls} network calls, "
        f"{stats.seconds:.1f} s, cache {stats.cache_bytes / 1e6:.1f} MB"
    )
