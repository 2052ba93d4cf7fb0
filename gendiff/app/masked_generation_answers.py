"""What a checkpoint of masked generation draws for the gallery: by several ways, in several orders, around a mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from gendiff.pipelines.masked_generation import MaskedGenerationPipeline, MaskedGenerationPipelineOutput
from gendiff.samplers.masked import MaskedScheduler
from gendiff.samplers.recap import ReCAPConfig

from .checkpoint_data import nearest, training_examples
from .examples import Examples, lower_half

PAINTED = 3
"""Draws of a part of a picture."""
TIMED = 2
"""Runs of which the quickest counts; the one before them also counts operations."""

Plan = tuple[int, ReCAPConfig | None]
"""Steps, and where light ones lie."""


@dataclass(frozen=True)
class Way:
    """A way to decode, and what came of it.

    Attributes:
        name: what it is.
        output: one image of each class.
        seconds: the quickest of `TIMED` runs.
        staleness: what `measure_staleness` found, mean over light steps; empty where there are none.
    """

    name: str
    output: MaskedGenerationPipelineOutput
    seconds: float
    staleness: dict[str, float]


@dataclass(frozen=True)
class Painted:
    """A part of each example drawn anew.

    Attributes:
        masks: (N, 1, S, S), 1 = drawn anew.
        hidden: (N, tokens) bool, what was hidden: the mask and the ring around it.
        draws: (N, PAINTED, C, S, S).
        blended: (N, C, S, S), the first draw of each with the kept pixels put back.
    """

    masks: Tensor
    hidden: Tensor
    draws: Tensor
    blended: Tensor


def draw(
    pipe: MaskedGenerationPipeline, labels: Sequence[int] | None, seed: int, count: int = 1, **options: Any
) -> MaskedGenerationPipelineOutput:
    """`count` images of each class, number i from seed + i, as tensors."""
    total = count * len(labels or [None])
    output = pipe(
        labels if labels is None else list(labels),
        num_images_per_prompt=count,
        generator=[torch.Generator().manual_seed(seed + i) for i in range(total)],
        output_type="pt",
        **options,
    )
    assert isinstance(output, MaskedGenerationPipelineOutput)
    return output


def pixels(output: MaskedGenerationPipelineOutput) -> Tensor:
    """(B, C, S, S) in [0, 1] on the CPU."""
    return output.images.float().cpu()


def compare(pipe: MaskedGenerationPipeline, labels: Sequence[int], seed: int, steps: int) -> list[Way]:
    """The base decoder, ReCAP with one and with three light steps, and the base decoder at the price of the former."""

    def run(plan: Plan) -> MaskedGenerationPipelineOutput:
        return draw(pipe, labels, seed, num_inference_steps=plan[0], recap=plan[1])

    light = ReCAPConfig(num_light_steps=1, num_warmup_groups=steps // 4)
    plans: dict[str, Plan] = {"Base": (steps, None), "ReCAP": (steps, light)}
    outputs = {name: run(plan) for name, plan in plans.items()}
    whole, spent = (output.stats.plan["flops"]["network"] for output in outputs.values())
    plans["Base, fewer"] = (max(1, round(steps * spent / whole)), None)
    plans["ReCAP, more"] = (steps, ReCAPConfig(num_light_steps=3))
    outputs |= {name: run(plans[name]) for name in list(plans)[2:]}
    # In turns, so that what else the machine does falls on all of them.
    rounds = [{name: run(plan).stats.seconds for name, plan in plans.items()} for _ in range(TIMED)]
    return [
        Way(name, outputs[name], min(one[name] for one in rounds), _staleness(pipe, labels[:2], seed, plan))
        for name, plan in plans.items()
    ]


def _staleness(pipe: MaskedGenerationPipeline, labels: Sequence[int], seed: int, plan: Plan) -> dict[str, float]:
    steps, recap = plan
    if recap is None:
        return {}
    output = draw(pipe, labels, seed, num_inference_steps=steps, recap=recap, measure_staleness=True)
    measured = output.stats.plan["staleness"]
    names = [name for name in (measured[0] if measured else {}) if name != "step"]
    return {name: sum(one[name] for one in measured) / len(measured) for name in names}


def by_order(
    pipe: MaskedGenerationPipeline, label: int, seed: int, steps: int
) -> dict[str, MaskedGenerationPipelineOutput]:
    """An image of a class in the scheduler's own order and in that of Halton's points, from one seed."""
    own = pipe.scheduler
    outputs = {}
    try:
        for order in dict.fromkeys([own.config["order"], "halton"]):
            pipe.scheduler = MaskedScheduler.from_config(own.config, order=order)
            outputs[order] = draw(pipe, [label], seed, num_inference_steps=steps)
    finally:
        pipe.scheduler = own
    return outputs


def closest(folder: Path, images: Tensor) -> tuple[Tensor, list[float]]:
    """The nearest training image of each (B, C, S, S), mirrored ones among them if training mirrored; see `nearest`."""
    known = training_examples(folder)
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
    if (recipe.get("objective") or {}).get("flip"):
        known = torch.cat([known, known.flip(-1)])
    return nearest(images, known)


def paint(pipe: MaskedGenerationPipeline, given: Examples, seed: int, steps: int) -> Painted:
    """A part of each example drawn anew as its class: of one a square in the middle, of the next its lower half."""
    side = given.images.shape[-1]
    masks = torch.cat([(middle, lower_half)[row % 2](side) for row in range(len(given.images))])
    rows = []
    for image, mask, label in zip(given.images, masks, given.labels, strict=True):
        options: dict[str, Any] = {"image": image[None], "mask_image": mask[None], "num_inference_steps": steps}
        plain = draw(pipe, [label], seed, PAINTED, **options)
        blended = draw(pipe, [label], seed, **options, blend_pixels=True)
        rows.append((plain.revealed_at[0].cpu() >= 0, pixels(plain), pixels(blended)[0]))
    hidden, draws, blended = (torch.stack(parts) for parts in zip(*rows, strict=True))
    return Painted(masks, hidden, draws, blended)


def middle(side: int) -> Tensor:
    """A mask (1, 1, S, S): a square of a third of the side in the middle is drawn anew."""
    mask = torch.zeros(1, 1, side, side)
    inner = slice(side // 3, side - side // 3)
    mask[..., inner, inner] = 1
    return mask
