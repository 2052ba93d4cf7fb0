"""How a tokenizer for next-frequency prediction is built and trained; no pipeline comes out, but the bare model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gendiff.models.frequency_vq import FrequencyVQModel

from .codebook import start_codebook, tend_codebook
from .image_draws import flipped
from .methods import Method
from .recipe import check_arguments

START_IMAGES = 512
"""Images that the first codes are placed among."""


@dataclass
class BareTokenizer:
    """A tokenizer where the trainer expects a pipeline; saved, it is the model's own folder, without an index."""

    vqvae: FrequencyVQModel

    @property
    def components(self) -> dict[str, Any]:
        return {"vqvae": self.vqvae}

    def to(self, *args: Any, **kwargs: Any) -> BareTokenizer:
        """Move the tokenizer."""
        self.vqvae.to(*args, **kwargs)
        return self

    def save_pretrained(self, folder: str | Path, safe_serialization: bool = True) -> None:
        """Write config.json and diffusion_pytorch_model.safetensors."""
        self.vqvae.save_pretrained(folder, safe_serialization=safe_serialization)

    def set_progress_bar_config(self, **kwargs: Any) -> None:
        """There is no bar."""


def objective(
    models: Mapping[str, Any],
    batch: Mapping[str, Tensor],
    generator: torch.Generator,
    revive_steps: int = 700,
    stage_dropout: float = 0.0,
    beta: float = 0.25,
    flip: bool = False,
) -> dict[str, Tensor]:
    """Errors of the reconstruction, of the quantiser, and how many codes each stage of the batch used.

    Args:
        models: with the "vqvae".
        batch: "image" (B, C, S, S) in [-1, 1].
        generator: CPU generator of every draw of this step.
        revive_steps: dead codes are moved during so many steps; about 70 % of all.
        stage_dropout: share of images that are decoded after a random stage, so that early previews are pictures.
        beta: weight, within "vq", of drawing the map towards its codes.
        flip: mirror half of the images left to right.

    Returns: "l2" and "l1" on pixels, "vq", "feature" (NFIG's additional term), and `codes_k`, distinct codes that stage
    k used in this batch.

    Raises:
        ValueError: a share outside [0, 1].
    """
    if not 0 <= stage_dropout <= 1:
        raise ValueError(f"objective.stage_dropout must be from 0 to 1, got {stage_dropout!r}.")
    vqvae, images = models["vqvae"], batch["image"]
    if flip:
        images = flipped(images, generator)
    last = _last_stages(len(images), len(vqvae.stages), stage_dropout, generator).to(images.device)
    output = vqvae(images, last_stage=last if stage_dropout else None, beta=beta)
    sample = output.sample.float()
    tend_codebook(vqvae.quantizer, output.quantized, generator, revive_steps)
    used = {f"codes_{k}": codes.unique().numel() for k, codes in enumerate(output.quantized.tokens)}
    return {
        "l2": F.mse_loss(sample, images),
        "l1": F.l1_loss(sample, images),
        "vq": output.vq_loss,
        "feature": output.feature_loss,
        **{name: torch.tensor(float(count)) for name, count in used.items()},
    }


def _last_stages(count: int, num_stages: int, dropout: float, generator: torch.Generator) -> Tensor:
    """(B,) int64: the last stage that is decoded of each image; for most of them the last of all."""
    drawn = torch.randint(num_stages, (count,), generator=generator)
    return torch.where(torch.rand(count, generator=generator) < dropout, drawn, num_stages - 1)


def build(models: Mapping[str, Mapping[str, Any]], dataset: Any) -> BareTokenizer:
    """Untrained tokenizer for `dataset`, its codes placed among what its encoder says of the first images.

    Args:
        models: keyword arguments of the "vqvae"; sizes of images are the data's.
        dataset: has `images` (N, C, S, S); items have "image" in [-1, 1].

    Raises:
        ValueError: an unknown component or argument.
    """
    check_arguments("models", models, ["vqvae"])
    channels, size = dataset.images.shape[1:3]
    arguments = {"in_channels": channels, "sample_size": size, **models.get("vqvae", {})}
    check_arguments("models.vqvae", arguments, FrequencyVQModel)
    vqvae = FrequencyVQModel(**arguments)
    images = torch.stack([dataset[index]["image"] for index in range(min(START_IMAGES, len(dataset)))])
    start_codebook(vqvae, images, torch.Generator().manual_seed(torch.initial_seed() % 2**63))
    return BareTokenizer(vqvae)


def preview(tokenizer: BareTokenizer, dataset: Any, generator: torch.Generator, columns: int = 8) -> Tensor:
    """Picture (C, H, W) in [0, 1]: training images, and below them what is decoded after each stage."""
    images = torch.stack([dataset[index]["image"] for index in range(min(columns, len(dataset)))])
    vqvae = tokenizer.vqvae
    images = images.to(vqvae.device)
    tokens = vqvae.encode(images).tokens
    decoded = [vqvae.decode(tokens[: k + 1]) for k in range(len(tokens))]
    rows = [torch.cat(list(row), dim=2) for row in (images, *decoded)]
    return torch.cat(rows, dim=1).float().cpu() / 2 + 0.5


METHOD = Method(build=build, objective=objective, preview=preview)
