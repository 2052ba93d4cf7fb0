"""How MAR is built, trained and previewed: hidden continuous tokens, said by a diffusion head."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gendiff.models.masked.mar import MARTransformer2DModel
from gendiff.models.masked.pixel_patches import PixelPatchTokenizer

from .image_data import check_labelled, fair_sample, image_shape, images_at
from .image_draws import augmented
from .masked_tokenizer import tokenizer_for
from .methods import Method
from .recipe import check_arguments, check_share
from .token_draws import draw_share, draw_times, hide_as_many
from .token_loss import head_losses, noised

MOST_IMAGES = 5000
"""Images from which the mean and the scale of patches are measured."""


def objective(
    models: Mapping[str, Any],
    batch: Mapping[str, Tensor],
    generator: torch.Generator,
    label_dropout: float = 0.1,
    least_hidden: float = 0.7,
    hidden_std: float = 0.25,
    repeats: int = 4,
    shift: int = 0,
    flip: bool = False,
) -> dict[str, Tensor]:
    """The head's losses over hidden tokens, given the visible ones.

    Args:
        models: "transformer", and "image_tokenizer", which gets no gradient.
        batch: "image" (B, C, S, S) in [-1, 1] and "label" (B,).
        generator: CPU generator of every draw of this step.
        label_dropout: share of images trained without their class, so that guidance has its contrast.
        least_hidden: share of tokens that are hidden at least.
        hidden_std: the share is normal around 1 with this deviation, truncated to [least_hidden, 1]; one draw a batch.
        repeats: how many noises and times each hidden token is trained on.
        shift: images move by up to so many pixels along each side.
        flip: mirror half of the images left to right.

    Returns: "mse" of the noise and the variational "bound" in bits, see `head_losses`; means over hidden tokens.

    Raises:
        ValueError: a share outside [0, 1], a deviation that is not positive, or repeats below 1.

    Source: Li et al. 2024 (MAR, arXiv 2406.11838), section 4.
    """
    check_share(label_dropout, "objective.label_dropout")
    check_share(least_hidden, "objective.least_hidden")
    if not hidden_std > 0:
        raise ValueError(f"objective.hidden_std must be above 0, got {hidden_std!r}.")
    if isinstance(repeats, bool) or not isinstance(repeats, int) or repeats < 1:
        raise ValueError(f"objective.repeats must be a whole number of at least 1, got {repeats!r}.")
    transformer, tokenizer = models["transformer"], models["image_tokenizer"]
    images, labels = augmented(batch["image"], shift, flip, generator), batch["label"]
    with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
        tokens = tokenizer.encode(images)
    share = draw_share(least_hidden, hidden_std, generator)
    hidden = hide_as_many(len(tokens), tokens.shape[1], share, generator).to(tokens.device)
    without = (torch.rand(len(labels), generator=generator) < label_dropout).to(labels.device)
    condition = labels.masked_fill(without, transformer.config["num_classes"])
    z = transformer(tokens, hidden, condition, return_dict=False)[0][hidden]
    targets = tokens[hidden]
    times = draw_times(len(targets), repeats, generator).to(targets.device).flatten()
    noise = torch.randn(len(times), targets.shape[1], generator=generator).to(targets.device)
    head = transformer.head
    # What depends on the time alone, or on the token alone, is computed once and repeated.
    spent = head.time_embed(torch.arange(1000, device=times.device))
    setting = spent[times] + head.condition_embed(z).repeat(repeats, 1)
    output = head.denoise(noised(targets.repeat(repeats, 1), noise, times), setting)
    mse, bound = head_losses(output, noise, times)
    return {"mse": mse.mean(), "bound": bound.mean()}


def build(models: Mapping[str, Mapping[str, Any]], dataset: Any) -> Any:
    """Untrained transformer for `dataset` behind a tokenizer.

    Args:
        models: "image_tokenizer": `path: FOLDER` of a saved one with continuous tokens, or arguments of
            `PixelPatchTokenizer`, whose means and scales are then measured; keyword arguments of the "transformer"
            and of the "scheduler". Grid, channels and classes need not be given.
        dataset: has `images` (N, C, S, S), `labels` (N,) and `classes`, their names.

    Raises:
        OSError: there is no tokenizer at the path given.
        ValueError: an unknown component or argument, or a tokenizer that does not fit.
    """
    from gendiff.pipelines.masked_generation import MaskedGenerationPipeline
    from gendiff.samplers.masked import MaskedScheduler

    check_arguments("models", models, ["image_tokenizer", "transformer", "scheduler"])
    check_labelled(dataset)
    tokenizer = _tokenizer(models.get("image_tokenizer", {}), dataset)
    if tokenizer.token_channels is None:
        raise ValueError("models.image_tokenizer must have continuous tokens; discrete ones are for masked-generation.")
    known = {
        "transformer": {
            "sample_size": math.isqrt(tokenizer.grid[0] * tokenizer.grid[1]),
            "token_channels": tokenizer.token_channels,
            "num_classes": len(dataset.classes),
            "token_range": getattr(tokenizer, "token_range", None),
        },
        "scheduler": {"order": "random", "guidance_schedule": "linear_revealed"},
    }
    classes = {"transformer": MARTransformer2DModel, "scheduler": MaskedScheduler}
    components: dict[str, Any] = {}
    for name, component in classes.items():
        arguments = known[name] | dict(models.get(name, {}))
        check_arguments(f"models.{name}", arguments, component)
        components[name] = component(**arguments)
    return MaskedGenerationPipeline(image_tokenizer=tokenizer, **components, class_names=dataset.classes)


def _tokenizer(given: Mapping[str, Any], dataset: Any) -> Any:
    if "path" in given:
        return tokenizer_for(given, dataset)
    channels, size = image_shape(dataset)
    arguments = {"in_channels": channels, "sample_size": size} | dict(given)
    check_arguments("models.image_tokenizer", arguments, PixelPatchTokenizer)
    tokenizer = PixelPatchTokenizer(**arguments)
    measure_patches(tokenizer, dataset)
    return tokenizer


@torch.no_grad()
def measure_patches(tokenizer: PixelPatchTokenizer, dataset: Any) -> None:
    """Set mean and scale so that each channel of the data's patches has mean 0 and variance 1; one that never changes
    keeps its scale.

    Args:
        tokenizer: changed in place.
        dataset: items have "image" (C, S, S) in [-1, 1].
    """
    chosen = fair_sample(dataset, MOST_IMAGES)
    patches = tokenizer.patches(images_at(dataset, chosen)).flatten(0, 1).double()
    deviation = patches.std(dim=0, correction=0)
    tokenizer.mean.copy_(patches.mean(dim=0))
    tokenizer.scale.copy_(deviation.where(deviation > 1e-3, torch.ones_like(deviation)))


def preview(pipeline: Any, dataset: Any, generator: torch.Generator, rows: int = 6, columns: int = 10) -> Tensor:
    """Picture (C, H, W) in [0, 1]: one column for each class, or for each of the first ones."""
    count = min(len(pipeline.class_names), columns)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(list(range(count)) * rows, generator=generator, output_type="pt", return_dict=False)[0]
    return torch.cat([torch.cat(list(row), dim=2) for row in images.cpu().split(count)], dim=1)


METHOD = Method(build=build, objective=objective, preview=preview)
