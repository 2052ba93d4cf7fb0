"""How MAGE is built, trained and previewed: an encoder that sees a part of the tokens, a decoder that says the rest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gendiff.models.masked.mage import MAGETransformer2DModel
from gendiff.pipelines.masked_generation import MaskedGenerationPipeline
from gendiff.samplers.masked import MaskedScheduler

from .image_data import check_labelled
from .image_draws import augmented
from .mage_draws import hide_and_drop
from .masked_tokenizer import tokenizer_for
from .methods import Method
from .recipe import check_arguments, check_share
from .token_losses import token_losses


def objective(
    models: Mapping[str, Any],
    batch: Mapping[str, Tensor],
    generator: torch.Generator,
    dropped_share: float = 0.5,
    hidden_mean: float = 0.55,
    hidden_std: float = 0.25,
    label_dropout: float = 0.1,
    label_smoothing: float = 0.1,
    shift: int = 0,
    flip: bool = False,
) -> dict[str, Tensor]:
    """Cross-entropy of the hidden tokens given the visible ones.

    Args:
        models: "transformer", and "image_tokenizer", which gets no gradient.
        batch: "image" (B, C, S, S) in [-1, 1], and "label" (B,) for a model that knows classes.
        generator: CPU generator of every draw of this step.
        dropped_share: of all tokens, hidden ones that the encoder leaves out; at least as many are hidden.
        hidden_mean: of the normal distribution of the hidden share, before it is cut to [dropped_share, 1].
        hidden_std: its deviation.
        label_dropout: share of images trained without their class, where there are classes.
        label_smoothing: share of the target spread over all codes.
        shift: images move by up to so many pixels along each side.
        flip: mirror half of the images left to right.

    Returns: "cross_entropy", smoothed, and "nats", without, both means over hidden tokens; "accuracy", the share of
    hidden tokens guessed right.

    Raises:
        ValueError: a share outside [0, 1], or a deviation that is not positive.

    Source: Li et al. 2023 (MAGE, arXiv 2211.09117), section 3.
    """
    shares = {
        "dropped_share": dropped_share,
        "hidden_mean": hidden_mean,
        "label_dropout": label_dropout,
        "label_smoothing": label_smoothing,
    }
    for name, share in shares.items():
        check_share(share, f"objective.{name}")
    if isinstance(hidden_std, bool) or not isinstance(hidden_std, int | float) or not 0 < hidden_std < math.inf:
        raise ValueError(f"objective.hidden_std must be a number above 0, got {hidden_std!r}.")
    transformer, tokenizer = models["transformer"], models["image_tokenizer"]
    images = augmented(batch["image"], shift, flip, generator)
    # In full precision: a rounded map has other tokens.
    with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
        tokens = tokenizer.encode(images)
    count, places = tokens.shape
    drawn = hide_and_drop(count, places, generator, dropped_share, hidden_mean, hidden_std)
    hidden, dropped = (part.to(tokens.device) for part in drawn)
    condition = None
    if transformer.config["num_classes"]:
        without = torch.rand(len(images), generator=generator) < label_dropout
        condition = batch["label"].masked_fill(without.to(images.device), transformer.null_class)
    logits = transformer(tokens, hidden, condition, dropped=dropped, return_dict=False)[0]
    return token_losses(logits, tokens, hidden, label_smoothing)


def build(models: Mapping[str, Mapping[str, Any]], dataset: Any) -> MaskedGenerationPipeline:
    """Untrained transformer for `dataset` behind a tokenizer.

    Args:
        models: "image_tokenizer", see `tokenizer_for`; keyword arguments of the "transformer" and of the "scheduler".
            Grid and codes need not be given. `num_classes` is 0, as published, or the number of the data's classes.
        dataset: has `images` (N, C, S, S), and with classes also `labels` (N,) and `classes`, their names.

    Raises:
        OSError: there is no tokenizer at the path given.
        ValueError: an unknown component or argument, or a tokenizer or classes that do not fit.
    """
    check_arguments("models", models, ["image_tokenizer", "transformer", "scheduler"])
    classes = models.get("transformer", {}).get("num_classes", 0)
    if classes:
        check_labelled(dataset)
        if classes != len(dataset.classes):
            raise ValueError(
                f"models.transformer.num_classes must be 0, or {len(dataset.classes)} as in the data, got {classes!r}."
            )
    tokenizer = tokenizer_for(models.get("image_tokenizer", {}), dataset)
    if tokenizer.codebook_size is None:
        raise ValueError("models.image_tokenizer must have discrete tokens; continuous ones are for the task mar.")
    side = math.isqrt(tokenizer.grid[0] * tokenizer.grid[1])
    known = {"transformer": {"sample_size": side, "codebook_size": tokenizer.codebook_size}, "scheduler": {}}
    kinds = {"transformer": MAGETransformer2DModel, "scheduler": MaskedScheduler}
    components: dict[str, Any] = {}
    for name, kind in kinds.items():
        arguments = known[name] | dict(models.get(name, {}))
        check_arguments(f"models.{name}", arguments, kind)
        components[name] = kind(**arguments)
    names = dataset.classes if classes else ()
    return MaskedGenerationPipeline(image_tokenizer=tokenizer, **components, class_names=names)


def preview(
    pipeline: MaskedGenerationPipeline, dataset: Any, generator: torch.Generator, rows: int = 6, columns: int = 10
) -> Tensor:
    """Picture (C, H, W) in [0, 1]: a column for each class, or for each of the first ones; any images without."""
    columns = min(len(pipeline.class_names), columns) or columns
    labels = list(range(columns)) * rows if pipeline.num_classes else None
    count = 1 if labels else rows * columns
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(labels, count, generator=generator, output_type="pt", return_dict=False)[0]
    return torch.cat([torch.cat(list(row), dim=2) for row in images.cpu().split(columns)], dim=1)


METHOD = Method(build=build, objective=objective, preview=preview)
