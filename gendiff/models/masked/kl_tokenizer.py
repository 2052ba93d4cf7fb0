"""diffusers' `AutoencoderKL` as a tokenizer of continuous tokens: an image to latent vectors and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Self

import torch
from diffusers import AutoencoderKL, ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

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


class KLTokenizer(ModelMixin, ConfigMixin):
    """An `AutoencoderKL`, as MAR has it, behind the interface of all tokenizers here.

    A token is what lies in a patch of p x p latent vectors, `(latent - mean) scaling_factor / std`, its channels before
    the places in the patch. Images of any side that is a multiple of the stride are encoded.

    Args:
        sample_size: side S of images in pixels, which `grid` is for.
        in_channels: C of images.
        scaling_factor: what makes latents about as large as noise.
        patch_size: side p of patches of latents.
        settings: all other arguments of `AutoencoderKL`; its `latents_mean` or `shift_factor` is the mean, 0 if it has
            neither, and its `latents_std` the std, 1 if it has none. None for its own defaults.

    Raises:
        ValueError: the side is not a multiple of the stride, the factor is not above 0, or settings hold a name that is
            given beside them.

    Source: Li et al. 2024 (MAR, arXiv 2406.11838).
    """

    _supports_gradient_checkpointing = False
    _supports_group_offloading = False

    @register_to_config
    def __init__(
        self,
        sample_size: int = 256,
        in_channels: int = 3,
        scaling_factor: float = 0.2325,
        patch_size: int = 1,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_counts(sample_size=sample_size, in_channels=in_channels, patch_size=patch_size)
        if isinstance(scaling_factor, bool) or not 0 < scaling_factor < math.inf:
            raise ValueError(f"scaling_factor must be above 0 and finite, got {scaling_factor!r}.")
        check_settings(settings or {}, "scaling_factor")
        self.vae = AutoencoderKL(
            in_channels=in_channels,
            out_channels=in_channels,
            sample_size=sample_size,
            scaling_factor=scaling_factor,
            **(settings or {}),
        )
        self.stride = stride_of(self.vae) * patch_size
        check_side("sample_size", sample_size, self.stride)

    @classmethod
    def wrap(
        cls,
        vae: AutoencoderKL,
        sample_size: int | None = None,
        scaling_factor: float | None = None,
        patch_size: int = 1,
    ) -> Self:
        """A tokenizer around a network that exists: it is not copied.

        Args:
            vae: of diffusers.
            sample_size: S; None for what its config says, which for published ones is often not their images' side.
            scaling_factor: None for what its config says.
            patch_size: p.

        Raises:
            TypeError: not an `AutoencoderKL`.
            ValueError: the side is not a multiple of the stride.
        """
        config, settings = vae.config, settings_of(vae, AutoencoderKL, "scaling_factor")
        side = config["sample_size"] if sample_size is None else sample_size
        factor = config["scaling_factor"] if scaling_factor is None else scaling_factor
        with torch.device("meta"):  # no memory for weights that are not wanted
            tokenizer = cls(side, config["in_channels"], factor, patch_size, settings)
        tokenizer.vae = vae
        tokenizer.training = vae.training
        return tokenizer

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens of an image of side S."""
        side = self.config["sample_size"] // self.stride
        return side, side

    @property
    def codebook_size(self) -> None:
        """Tokens are vectors, not numbers."""
        return None

    @property
    def token_channels(self) -> int:
        """c."""
        return self.vae.config["latent_channels"] * self.config["patch_size"] ** 2

    @torch.no_grad()
    def encode(
        self, images: Tensor, generator: torch.Generator | list[torch.Generator] | None = None, sample: bool = False
    ) -> Tensor:
        """Images (B, C, S, S) in [-1, 1] to tokens (B, N, c), row after row of the grid, in the dtype of the weights.

        Args:
            images: S may be another multiple of the stride than `sample_size`.
            generator: one, or one for each image; with it, `sample` is on.
            sample: draw from the posterior, as in training of MAR, instead of taking its mode.

        Raises:
            ValueError: another shape, a side that is not a multiple of the stride, or another number of generators.
        """
        check_square_images(images, self.config["in_channels"], self.stride)
        if isinstance(generator, list) and len(generator) != len(images):
            raise ValueError(f"generator must be one, or one for each of {len(images)} images, got {len(generator)}.")
        dtype = self.vae.dtype
        with precise(self.vae) as network:
            posterior = network.encode(images.to(network.dtype)).latent_dist
        drawn = sample or generator is not None
        latents = posterior.sample(generator) if drawn else posterior.mode()
        mean, std = self._moments(latents)
        latents = (latents - mean) * (self.config["scaling_factor"] / std)
        return pixel_unshuffle(latents, self.config["patch_size"]).flatten(2).transpose(1, 2).to(dtype)

    def decode(self, tokens: Tensor) -> Tensor:
        """Tokens (B, N, c) to images (B, C, S, S), about [-1, 1], in the dtype of the weights.

        Raises:
            ValueError: another shape, or N is not a square.
        """
        if tokens.ndim != 3 or tokens.shape[2] != self.token_channels:
            raise ValueError(f"tokens must be (B, N, {self.token_channels}), got {tuple(tokens.shape)}.")
        grid, dtype = grid_of(tokens), self.vae.dtype
        with precise(self.vae) as network:
            latents = tokens.to(network.dtype).transpose(1, 2).unflatten(2, grid)
            latents = pixel_shuffle(latents, self.config["patch_size"])
            mean, std = self._moments(latents)
            latents = latents * (std / self.config["scaling_factor"]) + mean
            return network.decode(latents, return_dict=False)[0].to(dtype)

    def forward(self, images: Tensor) -> Tensor:
        """Reconstruction (B, C, S, S) from the mode of the posterior."""
        return self.decode(self.encode(images))

    def _moments(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and std of latents, each (1, 1 or channels, 1, 1)."""
        config = self.vae.config
        mean = config["latents_mean"] or config["shift_factor"] or 0.0
        std = config["latents_std"] or 1.0
        first, second = (torch.as_tensor(part, device=like.device, dtype=like.dtype) for part in (mean, std))
        return first.view(1, -1, 1, 1), second.view(1, -1, 1, 1)
