"""The gallery's chapter on next-frequency prediction: every class, a picture stage by stage, and what can be kept."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from html import escape
from typing import Any

import torch
from torch import Tensor

from gendiff.pipelines.base import pipeline
from gendiff.pipelines.registry import Checkpoint

from .examples import Examples, lower_half
from .markup import code, facts, picture
from .next_frequency_answers import counterpart, draw, drawn, examples, keep_stages
from .next_frequency_blocks import (
    MOST_COLUMNS,
    PAINTED,
    bands_html,
    kept_block,
    painted_block,
    samples_block,
    shown_classes,
    stages_block,
)
from .next_frequency_pictures import stage_pictures, stages_strip
from .pictures import grid, png_bytes, to_pil
from .section import Chapter, Section, Settings

MOST_ROWS = 4
"""Draws of each class."""


def build(checkpoint: Checkpoint, settings: Settings, say: Callable[[str], None]) -> Section:
    """The section of one checkpoint.

    Raises:
        ValueError: the checkpoint is damaged.
        OSError: a file is missing.
    """
    pipe = _load(checkpoint, settings)
    names = pipe.class_names or [str(number) for number in range(pipe.num_classes)]
    shown = list(range(min(len(names), MOST_COLUMNS)))
    say(f"{len(shown)} classes")
    starts = [settings.seed + row * len(shown) for row in range(min(settings.num_images, MOST_ROWS))]
    outputs = [draw(pipe, shown, start) for start in starts]
    samples = torch.stack([output.images.float().cpu() for output in outputs])
    say("stage by stage")
    strips = {checkpoint.name: (pipe, _stages(pipe, settings.seed))}
    other = counterpart(checkpoint)
    if other is not None:
        second = _load(other, settings)
        strips[other.name] = (second, _stages(second, settings.seed))
    say("a picture whose first stages are known, and one whose upper half is")
    given = examples(pipe, checkpoint.path, min(settings.num_images, 2), settings.seed)
    image, label = given.images[0], given.labels[0]
    kept = keep_stages(pipe, image, label, (label + 1) % len(names), settings.seed)
    painted, mask = _inpaint(pipe, given, settings.seed), lower_half(image.shape[-1])
    html = (
        f"<h3>{escape(checkpoint.name)}</h3>{_facts(checkpoint, pipe, outputs[-1], settings)}"
        f"{samples_block(samples, [names[number] for number in shown])}"
        f"{stages_block(strips, names)}{kept_block(pipe, given, kept, names)}"
        f"{painted_block(given, painted, mask, names)}{_repeat(checkpoint, names, label, settings)}"
    )
    files = {
        "classes.png": _sheet(list(samples)),
        **{f"stages-{name}.png": _strip_file(*strip, names) for name, strip in strips.items()},
        "kept-stages.png": _sheet([kept.alone, *kept.drawn.values()]),
        "in-painting.png": _sheet(list(painted.transpose(0, 1))),
        "image.png": png_bytes(to_pil(image)),
        "mask.png": png_bytes(to_pil(mask[0])),
    }
    cover = "".join(picture(one, "") for one in samples[0])
    return Section(
        html,
        f'<span class="strip">{cover}</span><small>One image of each class, in {pipe.num_stages} steps.</small>',
        {f"{checkpoint.name}/{name}": content for name, content in files.items()},
    )


CHAPTER = Chapter("Next-frequency prediction", "next_frequency.html", build)


def _load(checkpoint: Checkpoint, settings: Settings) -> Any:
    pipe = pipeline("next-frequency", checkpoint.path, device=settings.device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _stages(pipe: Any, seed: int) -> Tensor:
    """(K, B, C, S, S): images of `shown_classes` after each stage."""
    return stage_pictures(pipe.vqvae, draw(pipe, shown_classes(pipe), seed).tokens)


def _inpaint(pipe: Any, given: Examples, seed: int) -> Tensor:
    """(N, 2 * PAINTED, C, S, S): each picture's lower half drawn anew, as decoded and then with its pixels put back."""
    mask = lower_half(given.images.shape[-1])
    pictures = []
    for image, label in zip(given.images, given.labels, strict=True):
        options = {"image": image[None], "mask_image": mask}
        plain = drawn(pipe, [label] * PAINTED, seed, **options)
        blended = drawn(pipe, [label] * PAINTED, seed, **options, blend_pixels=True)
        pictures.append(torch.cat([plain, blended]))
    return torch.stack(pictures)


def _facts(checkpoint: Checkpoint, pipe: Any, output: Any, settings: Settings) -> str:
    tokenizer, transformer = (
        sum(weight.numel() for weight in part.parameters()) for part in (pipe.vqvae, pipe.transformer)
    )
    size = sum(file.stat().st_size for file in checkpoint.path.rglob("*") if file.is_file())
    channels, side, _ = pipe.sample_shape
    stages, images, stats = pipe.vqvae.stages, len(output.class_labels), output.stats
    bands = "every stage is asked for all frequencies: next-scale prediction"
    if pipe.vqvae.radii is not None:
        bands = f"{bands_html(pipe)} cycles across the map of {stages[-1]} &times; {stages[-1]}"
    return facts(
        [
            ("Pictures", f"{side} &times; {side} px, {'colour' if channels == 3 else 'grey'}"),
            (
                "Weights",
                f"{transformer / 1e6:.2f} million parameters and {tokenizer / 1e6:.2f} of the tokenizer, "
                f"{size / 1e6:.1f} MB",
            ),
            (
                "Stages",
                f"{', '.join(f'{p} &times; {p}' for p in stages)}: {sum(p * p for p in stages)} tokens in "
                f"{len(stages)} steps",
            ),
            ("Bands", bands),
            (
                "Cost",
                f"{stats.flops / images / 1e9:.3f} GFLOP and {stats.seconds / images:.4f} s an image, {images} at once "
                f"on {pipe.device.type}; cache {stats.cache_bytes / images / 1e3:.0f} kB an image",
            ),
        ]
    )


def _sheet(rows: list[Tensor]) -> bytes:
    return png_bytes(grid([[to_pil(image, 3) for image in row] for row in rows]))


def _strip_file(pipe: Any, pictures: Tensor, names: list[str]) -> bytes:
    return png_bytes(stages_strip(pictures, pipe.vqvae, [names[label] for label in shown_classes(pipe)]))


def _repeat(checkpoint: Checkpoint, names: list[str], label: int, settings: Settings) -> str:
    device = f" --device {shlex.quote(settings.device)}" if settings.device else ""
    chosen = shlex.quote(names[label])
    start = f"gendiff sample next-frequency --model {checkpoint.name} --class {chosen}{device}"
    image, mask = (
        shlex.quote((settings.out / checkpoint.name / f"{what}.png").as_posix()) for what in ("image", "mask")
    )
    shell = (
        f"{start} --stages-strip --out out/stages\n"
        f"{start} \\\n    --image {image} --keep-stages 2 --out out/kept\n"
        f"{start} \\\n    --image {image} --mask {mask} --blend-pixels --out out/filled"
    )
    placed = f", device={settings.device!r}" if settings.device else ""
    python = (
        "import gendiff, torch\n\n"
        f'pipe = gendiff.pipeline("next-frequency", "{checkpoint.name}"{placed})\n'
        f"out = pipe({json.dumps(names[label])}, generator=torch.Generator().manual_seed(0))\n"
        f"preview = pipe({json.dumps(names[label])}, generator=torch.Generator().manual_seed(0), num_stages=3)\n"
        'out.images[0].save("picture.png")'
    )
    return f'<section class="block"><h4>Ask it yourself</h4>{code(shell)}{code(python)}</section>'
