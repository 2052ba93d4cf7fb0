"""The gallery's chapter on masked generation: how a picture appears, what ReCAP saves, and a part drawn anew."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

import torch
from torch import Tensor

from gendiff.pipelines.base import pipeline
from gendiff.pipelines.registry import Checkpoint

from .examples import Examples, examples_of
from .markup import code, facts, picture
from .masked_generation_answers import Painted, Way, by_order, closest, compare, draw, paint, pixels
from .masked_generation_blocks import ORDERS, order_block, painted_block, recap_block, samples_block, strip
from .masked_generation_pictures import order_maps, order_sheet
from .pictures import grid, png_bytes, to_pil
from .section import Chapter, Section, Settings

MOST_STEPS = 16
"""Of every picture. More would cost more and show nothing else."""
MOST_CLASSES = 10
"""That are shown."""
COMPARED = 4
"""Classes that are drawn in several ways, at most."""


def build(checkpoint: Checkpoint, settings: Settings, say: Callable[[str], None]) -> Section:
    """The section of one checkpoint.

    Raises:
        ValueError: the checkpoint is damaged.
        OSError: a file is missing.
    """
    pipe = pipeline("masked-generation", checkpoint.path, device=settings.device)
    pipe.set_progress_bar_config(disable=True)
    names = pipe.class_names or [str(number) for number in range(pipe.num_classes)]
    shown = list(range(min(len(names), MOST_CLASSES)))
    steps, seed, tokenizer = min(settings.steps, MOST_STEPS), settings.seed, pipe.image_tokenizer
    say(f"{len(shown)} classes in {steps} steps, with ReCAP and without")
    samples = draw(pipe, shown, seed, num_inference_steps=steps)
    compared = sorted(shown[::-1][::2][:COMPARED])
    ways = compare(pipe, compared, seed, steps)
    say("the order in which pictures appear")
    apart = sorted({len(names) // 3, max(len(names) - 2, 0)})
    orders = {names[label]: by_order(pipe, label, seed, steps) for label in apart}
    say("a part drawn anew")
    given = examples_of(
        checkpoint.path,
        pipe.num_classes,
        min(settings.num_images, 2),
        seed,
        lambda labels: pixels(draw(pipe, labels, seed, num_inference_steps=steps)),
    )
    painted = paint(pipe, given, seed, steps)
    html = (
        f"<h3>{escape(checkpoint.name)}</h3>{_facts(checkpoint, pipe, ways[0])}"
        f"{order_block(orders, tokenizer)}"
        f"{recap_block(ways, [names[label] for label in compared])}"
        f"{samples_block(pixels(samples), *closest(checkpoint.path, pixels(samples)), names[: len(shown)])}"
        f"{painted_block(given, painted, names, tokenizer)}"
        f"{_repeat(checkpoint, names[given.labels[0]], steps, settings)}"
    )
    first = next(iter(next(iter(orders.values())).values()))
    files = {
        "classes.png": _sheet([pixels(samples)]),
        "order.png": _orders(samples, tokenizer),
        "recap.png": _sheet([pixels(way.output) for way in ways], [way.name for way in ways]),
        "in-painting.png": _sheet(_painted_rows(given, painted)),
        "image.png": png_bytes(to_pil(given.images[0])),
        "mask.png": png_bytes(to_pil(painted.masks[0])),
    }
    cover = "".join(picture(one, "") for one in strip(first, tokenizer)[:-1])
    return Section(
        html,
        f'<span class="strip">{cover}</span><small>One picture in {steps} steps; blue is still hidden.</small>',
        {f"{checkpoint.name}/{name}": content for name, content in files.items()},
    )


CHAPTER = Chapter("Masked generation", "masked_generation.html", build)


def _facts(checkpoint: Checkpoint, pipe: Any, base: Way) -> str:
    tokenizer, transformer = (
        sum(weight.numel() for weight in part.parameters()) for part in (pipe.image_tokenizer, pipe.transformer)
    )
    size = sum(file.stat().st_size for file in checkpoint.path.rglob("*") if file.is_file())
    channels, side, _ = pipe.sample_shape
    height, width = pipe.image_tokenizer.grid
    kind = f"each one of {pipe.image_tokenizer.codebook_size} codes"
    if pipe.continuous:
        kind = f"each a vector of {pipe.image_tokenizer.token_channels} numbers, drawn by a diffusion network"
    images, stats = len(base.output.class_labels), base.output.stats
    order = pipe.scheduler.config["order"]
    return facts(
        [
            ("Pictures", f"{side} &times; {side} px, {'colour' if channels == 3 else 'grey'}"),
            (
                "Weights",
                f"{transformer / 1e6:.2f} million parameters and {tokenizer / 1e6:.2f} of the tokenizer, "
                f"{size / 1e6:.1f} MB",
            ),
            ("Tokens", f"{height} &times; {width}, {kind}"),
            ("Order", f"{ORDERS[order].lower()}, {escape(pipe.scheduler.config['schedule'])} schedule"),
            (
                "Cost",
                f"{stats.flops / images / 1e9:.3f} GFLOP and {base.seconds / images:.3f} s an image of "
                f"{len(stats.plan['revealed'][0])} steps, {images} at once on {pipe.device.type}",
            ),
        ]
    )


def _sheet(rows: Sequence[Tensor], labels: Sequence[str] | None = None) -> bytes:
    return png_bytes(grid([[to_pil(image, 3) for image in row] for row in rows], labels))


def _painted_rows(given: Examples, painted: Painted) -> list[Tensor]:
    parts = zip(given.images, painted.draws, painted.blended, strict=True)
    return [torch.cat([image[None], draws, blended[None]]) for image, draws, blended in parts]


def _orders(output: Any, tokenizer: Any) -> bytes:
    count = len(output.stats.plan["revealed"][0])
    maps = order_maps(output.revealed_at.cpu(), count, tokenizer)
    return png_bytes(order_sheet(pixels(output), maps, count, None))


def _repeat(checkpoint: Checkpoint, name: str, steps: int, settings: Settings) -> str:
    device = f" --device {shlex.quote(settings.device)}" if settings.device else ""
    asked = f"--class {shlex.quote(name)} --steps {steps}{device}"
    start = f"gendiff sample masked-generation --model {checkpoint.name} {asked}"
    image, mask = (
        shlex.quote((settings.out / checkpoint.name / f"{what}.png").as_posix()) for what in ("image", "mask")
    )
    recap = f"light=1,warmup={steps // 4}"
    shell = (
        f"{start} --order-map --out out/order\n"
        f"{start} \\\n    --recap {recap} --measure-staleness --out out/recap\n"
        f"{start} \\\n    --image {image} --mask {mask} --blend --out out/filled"
    )
    placed = f", device={settings.device!r}" if settings.device else ""
    python = (
        "import gendiff, torch\n\n"
        f'pipe = gendiff.pipeline("masked-generation", "{checkpoint.name}"{placed})\n'
        f"recap = gendiff.ReCAPConfig(num_light_steps=1, num_warmup_groups={steps // 4})\n"
        f"out = pipe({json.dumps(name)}, num_inference_steps={steps}, recap=recap,\n"
        "           generator=torch.Generator().manual_seed(0))\n"
        'out.images[0].save("picture.png")\n'
        'print(out.stats.plan["groups"], out.stats.flops)'
    )
    return f'<section class="block"><h4>Ask it yourself</h4>{code(shell)}{code(python)}</section>'
