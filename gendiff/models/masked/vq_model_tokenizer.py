"""diffusers' `VQModel` as a tokenizer: an image to numbers of codes and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from diffusers import ConfigMixin, ModelMixin, VQModel
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from gendiff.models.masked.checks import check_counts
from gendiff.models.masked.wrapping import (
    check_settings,
    check_side,
    check_square_images,
    grid_of,
    precise,
    settings_of,
    stride_of,
)
from gendiff.nn.wide import wide

BLOCK = 2**25
"""Distances of vectors to codes that are held at a time."""


class VQModelTokenizer(ModelMixin, ConfigMixin):
    """A `VQModel`, as in aMUSEd, behind the interface of all tokenizers here.

    Images of any side that is a multiple of the stride are encoded; the grid then has another size.

    Args:
        sample_size: side S of images in pixels, which `grid` is for.
        in_channels: C of images.
        settings: all other arguments of `VQModel`; None for its own defaults.

    Raises:
        ValueError: the side is not a multiple of the stride, or settings hold a name that is given beside them.
    """

    _supports_gradient_checkpointing = False
    _supports_group_offloading = False
    _skip_layerwise_casting_patterns = ("quantize",)

    @register_to_config
    def __init__(self, sample_size: int = 32, in_channels: int = 3, settings: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        check_counts(sample_size=sample_size, in_channels=in_channels)
        check_settings(settings or {})
        self.vqvae = VQModel(
            in_channels=in_channels, out_channels=in_channels, sample_size=sample_size, **(settings or {})
        )
        self.stride = stride_of(self.vqvae)
        check_side("sample_size", sample_size, self.stride)

    @classmethod
    def wrap(cls, vqvae: VQModel, sample_size: int | None = None) -> Self:
        """A tokenizer around a network that exists: it is not copied.

        Args:
            vqvae: of diffusers.
            sample_size: S; None for what its config says, which for published ones is often not their images' side.

        Raises:
            TypeError: not a `VQModel`.
            ValueError: the side is not a multiple of the stride.
        """
        settings = settings_of(vqvae, VQModel)
        side = vqvae.config["sample_size"] if sample_size is None else sample_size
        with torch.device("meta"):  # no memory for weights that are not wanted
            tokenizer = cls(side, vqvae.config["in_channels"], settings)
        tokenizer.vqvae = vqvae
        tokenizer.training = vqvae.training
        return tokenizer

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens of an image of side S."""
        side = self.config["sample_size"] // self.stride
        return side, side

    @property
    def codebook_size(self) -> int:
        """V."""
        return self.vqvae.config["num_vq_embeddings"]

    @property
    def token_channels(self) -> None:
        """Tokens are numbers, not vectors."""
        return None

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images (B, C, S, S) in [-1, 1] to tokens (B, N) int64, row after row of the grid.

        The nearest code is found in at least float32, whatever the weights are in.

        Raises:
            ValueError: another shape, or a side that is not a multiple of the stride.
        """
        check_square_images(images, self.config["in_channels"], self.stride)
        with precise(self.vqvae) as network:
            latents = network.encode(images.to(network.dtype)).latents  # (B, c, h, w)
        codebook: Any = self.vqvae.quantize.embedding.weight
        codebook = codebook.to(wide(codebook.dtype))
        vectors = latents.to(codebook.dtype).movedim(1, -1).flatten(0, 2)
        blocks = vectors.split(max(1, BLOCK // len(codebook)))
        nearest = torch.cat([torch.cdist(block, codebook).argmin(dim=1) for block in blocks])
        return nearest.view(len(images), -1)

    def decode(self, tokens: Tensor) -> Tensor:
        """Tokens (B, N) int64 to images (B, C, S, S), about [-1, 1], in the dtype of the weights.

        Raises:
            ValueError: another shape, N is not a square, or tokens outside 0 .. V - 1.
        """
        if tokens.ndim != 2 or tokens.dtype != torch.int64:
            raise ValueError(f"tokens must be (B, N) int64, got {tuple(tokens.shape)} {tokens.dtype}.")
        grid, last = grid_of(tokens), self.codebook_size - 1
        if tokens.numel() and ((tokens < 0) | (tokens > last)).any():
            raise ValueError(f"tokens must be from 0 to {last}, got {int(tokens.min())} to {int(tokens.max())}.")
        dtype = self.vqvae.dtype
        with precise(self.vqvae) as network:
            codes = network.quantize.embedding(tokens).unflatten(1, grid).movedim(-1, 1)
            # Not `network.decode`, which for some configs wants codes and for others their numbers.
            side = codes if network.config["norm_type"] == "spatial" else None
            return network.decoder(network.post_quant_conv(codes), side).to(dtype)

    def forward(self, images: Tensor) -> Tensor:
        """Reconstruction (B, C, S, S)."""
        return self.decode(self.encode(images))
