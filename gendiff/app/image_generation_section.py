"""The gallery's chapter on plain diffusion: every class by both solvers, and how close training images come."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from typing import Any

import torch

from gendiff.pipelines.base import pipeline
from gendiff.pipelines.image_generation import ImageGenerationPipelineOutput
from gendiff.pipelines.registry import Checkpoint
from gendiff.samplers.solvers import SOLVERS, solver

from .checkpoint_data import nearest, training_examples
from .markup import Row, code, facts, number, picture, plate
from .pictures import grid, png_bytes, to_pil
from .section import Chapter, Section, Settings

FAST_STEPS = 10
"""Steps shown beside the settings' own: where the solvers differ."""


def build(checkpoint: Checkpoint, settings: Settings, say: Callable[[str], None]) -> Section:
    """The section of one plain diffusion checkpoint.

    Raises:
        ValueError: the checkpoint is damaged.
        OSError: a file is missing.
    """
    pipe = pipeline("image-generation", checkpoint.path, device=settings.device)
    pipe.set_progress_bar_config(disable=True)
    own = pipe.scheduler
    count = len(pipe.class_names) or settings.num_images
    labels = list(range(len(pipe.class_names))) or None
    walks = [("ddim", settings.steps), ("ddim", FAST_STEPS), ("dpm-solver++", FAST_STEPS)]
    outputs: list[ImageGenerationPipelineOutput] = []
    for name, steps in walks:
        say(f"{count} images, {name}, {steps} steps")
        pipe.scheduler = solver(name, own)
        outputs.append(
            pipe(
                labels,
                num_images_per_prompt=1 if labels else count,
                num_inference_steps=min(steps, own.config["num_train_timesteps"]),
                generator=[torch.Generator().manual_seed(settings.seed + i) for i in range(count)],
                output_type="pt",
            )
        )
    pictures = [output.images.cpu() for output in outputs]
    closest, distances = nearest(pictures[0], training_examples(checkpoint.path))
    names = pipe.class_names or [""] * count
    rows = [
        Row(name, f"{steps} steps", names if i == 0 else [""] * count, images, f"{name}, {steps} steps")
        for i, ((name, steps), images) in enumerate(zip(walks, pictures, strict=True))
    ]
    rows.append(
        Row(
            "Nearest",
            "to the first row",
            [number(d, 1) for d in distances],
            closest,
            "nearest training image, distance",
        )
    )
    half = (len(names) + 1) // 2
    plates = "".join(plate([_columns(row, part) for row in rows]) for part in (slice(0, half), slice(half, None)))
    start = f"gendiff sample image-generation --model {checkpoint.name}"
    shell = f"{start} --scheduler dpm-solver++ --steps 20 --out out/images"
    html = (
        f"<h3>{escape(checkpoint.name)}</h3>{_facts(checkpoint, pipe, outputs[0], settings)}{plates}"
        f'<section class="block"><h4>Ask it yourself</h4>{code(shell)}</section>'
    )
    sheet = png_bytes(grid([[to_pil(image, 3) for image in row] for row in pictures], [name for name, _ in walks]))
    cover = "".join(picture(image, "") for image in pictures[0][:half])
    return Section(
        html,
        f'<span class="strip">{cover}</span><small>One image of each class, from noise.</small>',
        {f"{checkpoint.name}/solvers.png": sheet},
    )


CHAPTER = Chapter("Plain diffusion", "image_generation.html", build)


def _facts(checkpoint: Checkpoint, pipe: Any, output: ImageGenerationPipelineOutput, settings: Settings) -> str:
    parameters = sum(weight.numel() for weight in pipe.unet.parameters())
    size = sum(file.stat().st_size for file in checkpoint.path.rglob("*") if file.is_file())
    channels, side, _ = pipe.sample_shape
    images, stats = len(output.class_labels), output.stats
    return facts(
        [
            ("Pictures", f"{side} &times; {side} px, {'colour' if channels == 3 else 'grey'}"),
            ("Weights", f"{parameters / 1e6:.2f} million parameters, {size / 1e6:.1f} MB"),
            ("Solvers", ", ".join(SOLVERS)),
            (
                "Cost",
                f"{stats.flops / images / 1e9:.2f} GFLOP and {stats.seconds / images:.2f} s an image of "
                f"{settings.steps} steps on {pipe.device.type}",
            ),
        ]
    )


def _columns(row: Row, part: slice) -> Row:
    pictures = None if row.pictures is None else row.pictures[part]
    return Row(row.label, row.note, row.captions[part], pictures, row.alt, row.style)
