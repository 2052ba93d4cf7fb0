"""How a convolutional tokenizer of masked generation is built and trained; the bare model comes out, no pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gendiff.models.masked.fsq import FSQTokenizer
from gendiff.models.patch_discriminator import PatchDiscriminator

from .adversarial import patch_losses
from .bare_tokenizer import BareTokenizer
from .image_data import fair_sample, image_shape, images_at
from .image_draws import augmented
from .methods import Method
from .recipe import check_arguments

HEALTH_IMAGES = 2000
"""Images whose codes are counted for the card."""


def objective(
    models: Mapping[str, Any],
    batch: Mapping[str, Tensor],
    generator: torch.Generator,
    shift: int = 0,
    flip: bool = False,
) -> dict[str, Tensor]:
    """Errors of the reconstruction; rounding passes gradients unchanged.

    Args:
        models: the "tokenizer", and if wanted a "discriminator".
        batch: "image" (B, C, S, S) in [-1, 1].
        generator: CPU generator of every draw of this step.
        shift: images move by up to so many pixels along each side.
        flip: mirror half of the images left to right.

    Returns: "l2" and "l1" on pixels; "gan" and "discriminator", to be weighed both, if there is one.
    """
    images = augmented(batch["image"], shift, flip, generator)
    sample = models["tokenizer"](images).float()
    optional = patch_losses(models["discriminator"], images, sample) if "discriminator" in models else {}
    return {"l2": F.mse_loss(sample, images), "l1": F.l1_loss(sample, images), **optional}


def build(models: Mapping[str, Mapping[str, Any]], dataset: Any) -> BareTokenizer:
    """Untrained tokenizer for `dataset`.

    Args:
        models: keyword arguments of the "tokenizer", and of the "discriminator" if there is to be one. Sizes of images
            are the data's.
        dataset: has `images` (N, C, S, S).

    Raises:
        ValueError: an unknown component or argument, or images that are not square.
    """
    check_arguments("models", models, ["tokenizer", "discriminator"])
    channels, size = image_shape(dataset)
    arguments: dict[str, Any] = {"in_channels": channels, "sample_size": size} | dict(models.get("tokenizer", {}))
    check_arguments("models.tokenizer", arguments, FSQTokenizer)
    discriminator = None
    if "discriminator" in models:
        options: dict[str, Any] = {"in_channels": channels} | dict(models["discriminator"])
        check_arguments("models.discriminator", options, PatchDiscriminator)
        discriminator = PatchDiscriminator(**options)
    return BareTokenizer({"tokenizer": FSQTokenizer(**arguments), "discriminator": discriminator})


@torch.no_grad()
def finish(pipeline: BareTokenizer, dataset: Any) -> str:
    """How many codes images use, and how close reconstructions are, in Markdown."""
    tokenizer = pipeline.model
    positions = fair_sample(dataset, HEALTH_IMAGES)
    used, error, count = set(), 0.0, 0
    for start in range(0, len(positions), 200):
        images = images_at(dataset, positions[start : start + 200]).to(tokenizer.device)
        tokens = tokenizer.encode(images)
        used |= set(tokens.unique().tolist())
        error += float(((tokenizer.decode(tokens).clamp(-1, 1) - images) / 2).square().sum())
        count += images.numel()
    psnr = -10 * torch.log10(torch.tensor(error / count)).item()
    return (
        f"On {len(positions):,} training images: {len(used)} of {tokenizer.codebook_size} codes in use, "
        f"reconstructions at {psnr:.2f} dB.\n"
    )


def preview(pipeline: BareTokenizer, dataset: Any, generator: torch.Generator, columns: int = 10) -> Tensor:
    """Picture (C, H, W) in [0, 1]: images above their reconstructions."""
    tokenizer = pipeline.model
    images = images_at(dataset, fair_sample(dataset, columns)).to(tokenizer.device)
    with torch.no_grad():
        rows = [images, tokenizer.decode(tokenizer.encode(images))]
    picture = torch.cat([torch.cat(list(row), dim=2) for row in rows], dim=1)
    return ((picture.float().clamp(-1, 1) + 1) / 2).cpu()


METHOD = Method(build=build, objective=objective, finish=finish, preview=preview)
