"""Images in stages, coarse to fine, from loaded model to finished files, for the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging
from PIL import Image
from torch import Tensor

from gendiff.pipelines.base import pipeline
from gendiff.pipelines.images import to_tensor
from gendiff.pipelines.next_frequency import NextFrequencyPipeline, NextFrequencyPipelineOutput

from .next_frequency_pictures import band_labels, stage_pictures, stages_strip, without
from .pictures import grid, png_bytes, to_pil
from .run_record import run_record
from .video_inputs import read_picture

SHOWN = 84
"""Side in screen pixels, about, that a picture is enlarged to in the grid."""
COLUMNS = 8
"""Pictures in a row of the grid, at most."""
MOST_CLASSES = 100
"""That are drawn unasked."""
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
        name: _pixels(path, wanted, side)
        for name, path, wanted in (("image", order.image, channels), ("mask_image", order.mask, 1))
        if path is not None
    }
    labels = [_label(name, pipe.class_names) for name in order.classes]
    if not labels and not given:
        if pipe.num_classes > MOST_CLASSES:
            raise ValueError(f"{order.model} knows {pipe.num_classes} classes: choose some with --class.")
        labels = list(range(pipe.num_classes))
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
    names = [_name(pipe, label) for label in output.class_labels.tolist()]
    files = {f"images/{i:03d}.png": png_bytes(to_pil(image)) for i, image in enumerate(images)}
    files["grid.png"] = png_bytes(_grid(images, names, order.num_images, given))
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


def _pixels(path: Path, channels: int, side: int) -> Tensor:
    """The picture in a file, (1, C, S, S) in [0, 1]."""
    picture = read_picture(path)
    if picture.size != (side, side):
        width, height = picture.size
        raise ValueError(f"{path} is {width} x {height} px, and pictures of this model are {side} x {side}.")
    try:
        return (to_tensor(picture, channels, side) + 1) / 2
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _label(name: str, known: Sequence[str]) -> int | str:
    return int(name) if name.isdecimal() and name not in known else name


def _name(pipe: NextFrequencyPipeline, label: int) -> str:
    if label < 0:
        return ""
    return pipe.class_names[label] if pipe.class_names else str(label)


def _grid(images: Tensor, names: Sequence[str], per_class: int, given: Mapping[str, Tensor]) -> Image.Image:
    """What was given in the first row, then the images of each class, in rows of at most eight."""
    rows: list[Tensor] = []
    labels: list[str] = []
    if given:
        image, mask = given["image"], given.get("mask_image")
        rows.append(image if mask is None else torch.cat([image, without(image, mask)]))
        labels.append("given")
    for first in range(0, len(images), per_class):
        parts = images[first : first + per_class].split(COLUMNS)
        rows += parts
        labels += [names[first], *[""] * (len(parts) - 1)]
    scale = max(1, SHOWN // images.shape[-1])
    pictures = [[to_pil(image, scale) for image in row] for row in rows]
    return grid(pictures, labels if any(labels) else None)


def _summary(count: int, stats: Any) -> str:
    kept = stats.plan["keep_stages"]
    known = f", the first {kept} kept" if kept else ""
    return (
        f"{count} images in {len(stats.plan['stages'])} stages{known}: {stats.network_calls} network calls, "
        f"{stats.seconds:.1f} s, cache {stats.cache_bytes / 1e6:.1f} MB"
    )
