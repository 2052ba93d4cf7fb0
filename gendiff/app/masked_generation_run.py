"""Images from hidden tokens, from loaded model to finished files, for the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import logging
from torch import Tensor

from gendiff.pipelines.base import pipeline
from gendiff.pipelines.masked_generation import MaskedGenerationPipelineOutput
from gendiff.pipelines.stats import RunStats
from gendiff.samplers.masked import MaskedScheduler
from gendiff.samplers.recap import ReCAPConfig

from .class_grid import class_grid
from .given_pictures import read_pixels
from .masked_generation_pictures import (
    order_maps,
    order_sheet,
    shown_steps,
    step_labels,
    step_pictures,
    steps_sheet,
)
from .pictures import png_bytes, to_pil
from .run_record import run_record
from .typed_classes import class_name, class_of, every_class

OF_MASKS = {"mask_dilation": "--dilation", "blend_pixels": "--blend"}
OF_HEADS = {"num_head_steps": "--head-steps", "head_temperature": "--head-temperature"}
OF_LOGITS = {"confidence_temperature": "--temperature", "sampling_temperature": "--sampling-temperature"}


@dataclass(frozen=True)
class Order:
    """What to draw.

    Attributes:
        model: built-in checkpoint, folder or hub repository.
        classes: names or numbers; empty for every class, or for none where there is an image.
        prompts: texts instead of classes, for a model that reads text.
        num_images: images of each class or text.
        unconditional: draw without a class.
        image: file of a picture to fill in.
        mask: file of what to draw anew of it, white; black is kept.
        order_map: also show when each token was decided.
        seed: image i is drawn from seed + i.
        device: e.g. "cuda"; None for the CPU.
        recap: where light steps lie; None for none.
        scheduler: arguments of the scheduler to change; None for the model's own.
        options: further arguments of the pipeline's call; None for its own default.

    Raises:
        ValueError: what can not be asked of any model.
    """

    model: str
    classes: Sequence[str] = ()
    prompts: Sequence[str] = ()
    num_images: int = 4
    unconditional: bool = False
    image: Path | None = None
    mask: Path | None = None
    order_map: bool = False
    seed: int = 0
    device: str | None = None
    recap: ReCAPConfig | None = None
    scheduler: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.num_images < 1:
            raise ValueError(f"--num-images must be at least 1, got {self.num_images}.")
        named = {"--class": self.classes, "--prompt": self.prompts, "--unconditional": self.unconditional}
        given = [option for option, value in named.items() if value]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} exclude each other.")
        if (self.image is None) != (self.mask is None):
            one, missing = ("--image", "--mask") if self.mask is None else ("--mask", "--image")
            raise ValueError(f"{one} needs {missing}: what to keep, and where to draw anew.")
        for name, option in OF_MASKS.items():
            if self.options.get(name) and self.image is None:
                raise ValueError(f"{option} needs --image and --mask: without them nothing is kept.")
        if self.options.get("measure_staleness") and (self.recap is None or not self.recap.active):
            raise ValueError("--measure-staleness needs --recap: without light steps there is nothing to measure.")


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
    pipe = pipeline("masked-generation", order.model, device=order.device)
    _check_kind(order, pipe.continuous)
    changed = {name: value for name, value in order.scheduler.items() if value is not None}
    scheduler = MaskedScheduler.from_config(pipe.scheduler.config, **changed)
    assert isinstance(scheduler, MaskedScheduler)
    if order.scheduler.get("confidence_temperature") is not None and scheduler.config["order"] != "confidence":
        raise ValueError(f"--temperature needs --order confidence, got {scheduler.config['order']}.")
    pipe.scheduler = scheduler
    channels, side, _ = pipe.sample_shape
    given: dict[str, Tensor] = {}
    if order.image is not None and order.mask is not None:
        mask = read_pixels(order.mask, 1, side)
        given = {"image": read_pixels(order.image, channels, side), "mask_image": (mask >= 0.5).float()}
    labels: list[Any] = [class_of(word, pipe.class_names) for word in order.classes]
    if not labels and not order.prompts and not given and not order.unconditional:
        labels = [*every_class(pipe, order.model)]
    count = order.num_images * max(1, len(labels) + len(order.prompts))
    output = pipe(
        labels or None,
        num_images_per_prompt=order.num_images,
        **_options(order, bool(labels or order.prompts)),
        **given,
        recap=order.recap,
        generator=[torch.Generator().manual_seed(order.seed + i) for i in range(count)],
        output_type="pt",
    )
    assert isinstance(output, MaskedGenerationPipelineOutput)
    images = output.images.float().cpu()
    names = [class_name(pipe, label) for label in output.class_labels.tolist()]
    if order.prompts:
        names = [text for text in order.prompts for _ in range(order.num_images)]
    files = {f"images/{i:03d}.png": png_bytes(to_pil(image)) for i, image in enumerate(images)}
    files["grid.png"] = png_bytes(class_grid(images, names, order.num_images, given))
    if order.order_map:
        files |= _maps(images, output, names, pipe.image_tokenizer)
    settings = {name: value for name, value in scheduler.config.items() if not name.startswith("_")}
    files["run.json"] = run_record("masked-generation", arguments, output.stats, classes=names, scheduler=settings)
    return files, _summary(count, output.stats)


def _check_kind(order: Order, continuous: bool) -> None:
    """Raise ValueError for an option that says nothing to this kind of model."""
    for name, option in OF_HEADS.items():
        if order.options.get(name) is not None and not continuous:
            raise ValueError(f"{option} needs a model with a diffusion head; tokens of {order.model} are numbers.")
    for name, option in OF_LOGITS.items():
        if order.scheduler.get(name) is not None and continuous:
            raise ValueError(f"{option} needs a model that predicts codes; tokens of {order.model} are vectors.")


def _options(order: Order, steered: bool) -> dict[str, Any]:
    """Arguments of the call; without class or text there is nothing to guide to, and nothing is spent on it."""
    options = {name: value for name, value in order.options.items() if value is not None}
    if order.prompts:
        options["prompt"] = list(order.prompts)
    if steered:
        return options
    if "guidance_scale" in options:
        raise ValueError(
            f"--guidance {options['guidance_scale']:g} needs --class: without a class there is nothing to guide to."
        )
    return {**options, "guidance_scale": 1.0, "unconditional": True}


def _maps(images: Tensor, output: MaskedGenerationPipelineOutput, names: list[str], tokenizer: Any) -> dict[str, bytes]:
    """When each token was decided, as maps and as a strip of steps."""
    revealed_at, plan = output.revealed_at.cpu(), output.stats.plan
    revealed, shown = plan["revealed"][0], names if any(names) else None
    known = int((revealed_at[0] < 0).sum())
    steps = shown_steps(len(revealed))
    steps = [-1, *steps] if known else steps
    maps = order_maps(revealed_at, len(revealed), tokenizer)
    pictures = step_pictures(images, revealed_at, steps, tokenizer)
    labels = step_labels(steps, plan["groups"], revealed, known)
    return {
        "order.png": png_bytes(order_sheet(images, maps, len(revealed), shown, known > 0)),
        "steps.png": png_bytes(steps_sheet(pictures, maps, labels, shown)),
    }


def _summary(count: int, stats: RunStats) -> str:
    groups = stats.plan["groups"]
    steps = sum(len(group) for group in groups)
    kinds = f"{len(groups)} full, {steps - len(groups)} light" if steps > len(groups) else "all of them full"
    lines = [
        f"{count} images in {steps} steps, {kinds}: {stats.network_calls} network calls, "
        f"{stats.flops / count / 1e9:.3g} GFLOP an image, {stats.seconds:.1f} s, "
        f"cache {stats.cache_bytes / 1e6:.1f} MB"
    ]
    measured = stats.plan.get("staleness")
    if measured:
        means = {name: sum(one[name] for one in measured) / len(measured) for name in measured[0] if name != "step"}
        said = ", ".join(f"{name} {value:.3g}" for name, value in means.items())
        lines.append(f"light against full answers, mean over {len(measured)} light steps: {said}")
    return "\n".join(lines)
