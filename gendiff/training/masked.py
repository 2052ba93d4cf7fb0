"""How a transformer over hidden tokens is built, trained and previewed, on the tokens of a tokenizer that stays."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gendiff.models.masked.maskgit import MaskGITTransformer2DModel
from gendiff.pipelines.masked_generation import MaskedGenerationPipeline
from gendiff.samplers.masked import MaskedScheduler

from .image_data import check_labelled
from .image_draws import augmented
from .mask_draws import hide_tokens
from .masked_tokenizer import tokenizer_for
from .methods import Method
from .recipe import check_arguments, check_share
from .token_losses import token_losses


def objective(
    models: Mapping[str, Any],
    batch: Mapping[str, Tensor],
    generator: torch.Generator,
    label_dropout: float = 0.1,
    label_smoothing: float = 0.1,
    shift: int = 0,
    flip: bool = False,
) -> dict[str, Tensor]:
    """Cross-entropy of the hidden tokens given the visible ones.

    Args:
        models: "transformer", and "image_tokenizer", which gets no gradient.
        batch: "image" (B, C, S, S) in [-1, 1] and "label" (B,).
        generator: CPU generator of every draw of this step.
        label_dropout: share of images trained without their class, so that guidance has its contrast.
        label_smoothing: share of the target spread over all codes.
        shift: images move by up to so many pixels along each side.
        flip: mirror half of the images left to right.

    Returns: "cross_entropy", smoothed, and "nats", without, both means over hidden tokens; "accuracy", the share of
    hidden tokens guessed right.

    Raises:
        ValueError: a share outside [0, 1].

    Source: Chang et al. 2022 (MaskGIT), section 3.1.
    """
    check_share(label_dropout, "objective.label_dropout")
    check_share(label_smoothing, "objective.label_smoothing")
    transformer, tokenizer = models["transformer"], models["image_tokenizer"]
    images, labels = augmented(batch["image"], shift, flip, generator), batch["label"]
    # In full precision: a rounded map has other tokens.
    with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
        tokens = tokenizer.encode(images)
    hidden = hide_tokens(len(tokens), tokens.shape[1], generator).to(tokens.device)
    without = (torch.rand(len(labels), generator=generator) < label_dropout).to(labels.device)
    condition = labels.masked_fill(without, transformer.config["num_classes"])
    logits = transformer(tokens, hidden, condition, return_dict=False)[0]
    return token_losses(logits, tokens, hidden, label_smoothing)


def build(models: Mapping[str, Mapping[str, Any]], dataset: Any) -> MaskedGenerationPipeline:
    """Untrained transformer for `dataset` behind a tokenizer.

    Args:
        models: "image_tokenizer", see `tokenizer_for`; keyword arguments of the "transformer" and of the "scheduler".
            Grid, codes and classes need not be given.
        dataset: has `images` (N, C, S, S), `labels` (N,) and `classes`, their names.

    Raises:
        OSError: there is no tokenizer at the path given.
        ValueError: an unknown component or argument, or a tokenizer that does not fit.
    """
    check_arguments("models", models, ["image_tokenizer", "transformer", "scheduler"])
    check_labelled(dataset)
    tokenizer = tokenizer_for(models.get("image_tokenizer", {}), dataset)
    if tokenizer.codebook_size is None:
        raise ValueError("models.image_tokenizer must have discrete tokens; continuous ones are for the task mar.")
    known = {
        "transformer": {
            "sample_size": math.isqrt(tokenizer.grid[0] * tokenizer.grid[1]),
            "codebook_size": tokenizer.codebook_size,
            "num_classes": len(dataset.classes),
        },
        "scheduler": {},
    }
    classes = {"transformer": MaskGITTransformer2DModel, "scheduler": MaskedScheduler}
    components: dict[str, Any] = {}
    for name, component in classes.items():
        arguments = known[name] | dict(models.get(name, {}))
        check_arguments(f"models.{name}", arguments, component)
        components[name] = component(**arguments)
    return MaskedGenerationPipeline(image_tokenizer=tokenizer, **components, class_names=dataset.classes)


def preview(
    pipeline: MaskedGenerationPipeline, dataset: Any, generator: torch.Generator, rows: int = 6, columns: int = 10
) -> Tensor:
    """Picture (C, H, W) in [0, 1]: one column for each class, or for each of the first ones."""
    count = min(len(pipeline.class_names), columns)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(list(range(count)) * rows, generator=generator, output_type="pt", return_dict=False)[0]
    return torch.cat([torch.cat(list(row), dim=2) for row in images.cpu().split(count)], dim=1)


METHOD = Method(build=build, objective=objective, preview=preview)
