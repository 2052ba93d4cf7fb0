"""How a tokenizer for next-frequency prediction is built and trained; no pipeline comes out, but the bare model.

Losses after VQGAN (Esser et al. 2021), VAR (Tian et al. 2024) and NFIG (Huang et al. 2025). LPIPS and a discriminator
are off unless `models` of the recipe names them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gendiff.models.frequency_vq import FrequencyVQModel
from gendiff.models.patch_discriminator import PatchDiscriminator

from .adversarial import patch_losses
from .bare_tokenizer import BareTokenizer
from .codebook import start_codebook, tend_codebook
from .image_data import fair_sample, image_shape, images_at
from .image_draws import augmented
from .methods import Method
from .perceptual import load_perceptual, perceptual_loss
from .recipe import check_arguments, check_number, check_share
from .tokenizer_files import OF_STAGES, load_tokenizer
from .tokenizer_health import report_stages

START_IMAGES = 512
"""Images that the first codes are placed among."""


def objective(
    models: Mapping[str, Any],
    batch: Mapping[str, Tensor],
    generator: torch.Generator,
    revive_steps: int = 700,
    stage_dropout: float = 0.0,
    beta: float = 0.25,
    shift: int = 0,
    flip: bool = False,
) -> dict[str, Tensor]:
    """Errors of the reconstruction, of the quantiser, and how many codes each stage of the batch used.

    Args:
        models: the "vqvae", and if wanted a "discriminator" and "lpips".
        batch: "image" (B, C, S, S) in [-1, 1].
        generator: CPU generator of every draw of this step.
        revive_steps: dead codes are moved during so many batches; about 70 % of all.
        stage_dropout: share of images that are decoded after a random stage, so that early previews are pictures.
        beta: weight, within "vq", of drawing the map towards its codes.
        shift: images move by up to so many pixels along each side.
        flip: mirror half of the images left to right.

    Returns: "l2" and "l1" on pixels, "vq", "feature" (NFIG's additional term); "lpips" if there is that network; "gan"
    and "discriminator", to be weighed both, if there is one, see `patch_losses`; and `codes_k`, distinct codes that
    stage k used in this batch.

    Raises:
        ValueError: an option out of its range.
    """
    check_number(revive_steps, int, "objective.revive_steps")
    check_number(beta, float, "objective.beta")
    check_share(stage_dropout, "objective.stage_dropout")
    vqvae, images = models["vqvae"], augmented(batch["image"], shift, flip, generator)
    last = _last_stages(len(images), len(vqvae.stages), stage_dropout, generator).to(images.device)
    output = vqvae(images, last_stage=last if stage_dropout else None, beta=beta)
    sample = output.sample.float()
    tend_codebook(vqvae.quantizer, output.quantized, generator, revive_steps)
    optional = {}
    if "lpips" in models:
        optional["lpips"] = perceptual_loss(models["lpips"], images, sample)
    if "discriminator" in models:
        optional |= patch_losses(models["discriminator"], images, sample)
    used = {f"codes_{k}": codes.unique().numel() for k, codes in enumerate(output.quantized.tokens)}
    return {
        "l2": F.mse_loss(sample, images),
        "l1": F.l1_loss(sample, images),
        "vq": output.vq_loss,
        "feature": output.feature_loss,
        **optional,
        **{name: torch.tensor(float(count)) for name, count in used.items()},
    }


def _last_stages(count: int, num_stages: int, dropout: float, generator: torch.Generator) -> Tensor:
    """(B,) int64: the last stage that is decoded of each image; for most of them the last of all."""
    drawn = torch.randint(num_stages, (count,), generator=generator)
    return torch.where(torch.rand(count, generator=generator) < dropout, drawn, num_stages - 1)


def build(models: Mapping[str, Mapping[str, Any]], dataset: Any) -> BareTokenizer:
    """Untrained tokenizer for `dataset`, its codes placed among what its encoder says of some of the images.

    Args:
        models: keyword arguments of the "vqvae", or `path: FOLDER` of a trained one, whose decoder alone is trained
            further, so that its tokens stay what they are; of the "discriminator", if there is to be one; `net` and
            `weights` of "lpips", see `load_perceptual`, if there is to be that. Sizes of images are the data's.
        dataset: has `images` (N, C, S, S); items have "image" in [-1, 1].

    Raises:
        ValueError: an unknown component or argument, images that are not square, or no weights for "lpips".
    """
    check_arguments("models", models, ["vqvae", "discriminator", "lpips"])
    channels, size = image_shape(dataset)
    given = models.get("vqvae", {})
    discriminator = lpips = None
    if "lpips" in models:
        check_arguments("models.lpips", models["lpips"], ["net", "weights"])
        lpips = load_perceptual(channels, size, **models["lpips"])
    vqvae = _decoder_alone(given, (channels, size)) if "path" in given else _untrained(given, (channels, size), dataset)
    if "discriminator" in models:
        judged = {"in_channels": channels, **models["discriminator"]}
        check_arguments("models.discriminator", judged, PatchDiscriminator)
        discriminator = PatchDiscriminator(**judged)
    return BareTokenizer({"vqvae": vqvae, "discriminator": discriminator, "lpips": lpips})


def _untrained(given: Mapping[str, Any], shape: tuple[int, int], dataset: Any) -> FrequencyVQModel:
    arguments = {"in_channels": shape[0], "sample_size": shape[1], **given}
    check_arguments("models.vqvae", arguments, FrequencyVQModel)
    vqvae = FrequencyVQModel(**arguments)
    images = images_at(dataset, fair_sample(dataset, START_IMAGES))
    start_codebook(vqvae, images, torch.Generator().manual_seed(torch.initial_seed() % 2**63))
    return vqvae


def _decoder_alone(given: Mapping[str, Any], shape: tuple[int, int]) -> FrequencyVQModel:
    check_arguments("models.vqvae", given, ["path"])
    vqvae = load_tokenizer(given["path"], shape, "vqvae", OF_STAGES)
    for part in (vqvae.encoder, vqvae.quant_conv, vqvae.quantizer):
        part.requires_grad_(False)
    return vqvae


def finish(tokenizer: BareTokenizer, dataset: Any) -> str:
    """Measure how each stage is used; see `report_stages`."""
    return report_stages(tokenizer.model, dataset)


def preview(tokenizer: BareTokenizer, dataset: Any, generator: torch.Generator, columns: int = 8) -> Tensor:
    """Picture (C, H, W) in [0, 1]: training images, and below them what is decoded after each stage."""
    vqvae = tokenizer.model
    images = images_at(dataset, fair_sample(dataset, columns)).to(vqvae.device)
    tokens = vqvae.encode(images).tokens
    decoded = [vqvae.decode(tokens[: k + 1]) for k in range(len(tokens))]
    rows = [torch.cat(list(row), dim=2) for row in (images, *decoded)]
    return torch.cat(rows, dim=1).float().cpu() / 2 + 0.5


METHOD = Method(build=build, objective=objective, finish=finish, preview=preview)
