"""Tiny tokenizers of masked generation, with weights that use all of their range."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from diffusers import AutoencoderKL, VQModel
from torch import Tensor, nn

from gendiff.models.masked.fsq import FSQTokenizer
from gendiff.models.masked.kl_tokenizer import KLTokenizer
from gendiff.models.masked.patch_vq import PatchVQTokenizer
from gendiff.models.masked.pixel_patches import PixelPatchTokenizer
from gendiff.models.masked.vq_model_tokenizer import VQModelTokenizer

HALVES = [torch.bfloat16, torch.float16]
AUTOENCODER: dict[str, Any] = {
    "block_out_channels": (8, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 4,
    "latent_channels": 4,
    "sample_size": 16,
}
# Its norms have 32 groups, whatever is asked for.
SPATIAL = {"norm_type": "spatial", "block_out_channels": (32, 32)}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(batch: int, channels: int, side: int, seed: int = 2) -> Tensor:
    return torch.rand(batch, channels, side, side, generator=generator(seed)) * 2 - 1


def cast(model: Any, dtype: torch.dtype) -> Any:
    """A copy in another dtype; diffusers' own method warns of nothing."""
    return nn.Module.to(copy.deepcopy(model), dtype)


def patch_vq(side: int = 10, channels: int = 2, patch: int = 4, codes: int = 8, padding: int = 1) -> PatchVQTokenizer:
    """Centres are multiples of 1/8, so that every dtype has them as they are, and well apart."""
    tokenizer = PatchVQTokenizer(side, channels, patch, codes, padding)
    drawn = torch.randint(-8, 9, tokenizer.codebook.shape, generator=generator(1)) / 8
    tokenizer.codebook.copy_(drawn)
    return tokenizer


def fsq(**options: Any) -> FSQTokenizer:
    torch.manual_seed(0)
    tiny: dict[str, Any] = {"sample_size": 12, "in_channels": 3, "levels": (5, 4, 3), "block_out_channels": (8, 16)}
    tokenizer = FSQTokenizer(**{**tiny, "padding": 2, "norm_num_groups": 4, **options}).eval()
    tokenizer.encoder.conv_out.weight.data.mul_(8)  # latents that reach the outer levels
    return tokenizer


def vq_model(dtype: torch.dtype = torch.float32, **options: Any) -> VQModel:
    torch.manual_seed(0)
    network = VQModel(**{**AUTOENCODER, "num_vq_embeddings": 32, **options}).eval()
    # Codes from among the latents, so that many of them are used.
    latents = network.encode(images(4, network.config["in_channels"], 16, seed=9)).latents.detach()
    network.quantize.embedding.weight.data = latents.movedim(1, -1).flatten(0, 2)[::8].contiguous()
    return cast(network, dtype)


def kl_model(dtype: torch.dtype = torch.float32, **options: Any) -> AutoencoderKL:
    torch.manual_seed(0)
    return cast(AutoencoderKL(**{**AUTOENCODER, **options}).eval(), dtype)


def pixel_patches() -> PixelPatchTokenizer:
    tokenizer = PixelPatchTokenizer(10, 2, 4, 1)
    tokenizer.mean.copy_(torch.linspace(-0.5, 0.5, 32))
    tokenizer.scale.copy_(torch.linspace(0.25, 2, 32))
    return tokenizer


ALL: dict[str, Callable[[], Any]] = {
    "patch_vq": patch_vq,
    "fsq": fsq,
    "vq_model": lambda: VQModelTokenizer.wrap(vq_model()),
    "kl": lambda: KLTokenizer.wrap(kl_model(), patch_size=2),
    "pixel_patches": pixel_patches,
}
WRAPPERS = {"vq_model": lambda: VQModelTokenizer.wrap(vq_model()), "kl": lambda: KLTokenizer.wrap(kl_model())}


def shown(tokenizer: Any, batch: int = 3) -> Tensor:
    return images(batch, tokenizer.config["in_channels"], tokenizer.config["sample_size"])
