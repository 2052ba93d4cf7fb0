"""A tokenizer that loses nothing: each patch of pixels is a vector, scaled to about unit variance."""

from __future__ import annotations

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor
from torch.nn.functional import pad, pixel_shuffle, pixel_unshuffle

from gendiff.models.masked.checks import check_counts, check_images


class PixelPatchTokenizer(ModelMixin, ConfigMixin):
    """Continuous tokens that are patches of pixels, less a mean and over a scale for each channel of a patch.

    Args:
        sample_size: side S of images, in pixels.
        in_channels: C of images.
        patch_size: side p of a patch; the grid has ((S + 2 padding) / p)^2 tokens.
        padding: pixels added around an image, at its darkest value.

    Raises:
        ValueError: the padded side is not a multiple of p.
    """

    @register_to_config
    def __init__(self, sample_size: int = 28, in_channels: int = 1, patch_size: int = 4, padding: int = 0) -> None:
        super().__init__()
        check_counts(sample_size=sample_size, in_channels=in_channels, patch_size=patch_size)
        if padding < 0 or (sample_size + 2 * padding) % patch_size:
            raise ValueError(
                f"sample_size + 2 padding must be a multiple of patch_size {patch_size}, got {sample_size} + 2 * "
                f"{padding}."
            )
        side = (sample_size + 2 * padding) // patch_size
        self.grid = (side, side)
        channels = in_channels * patch_size**2
        # Not trained by gradients; parameters, so that they are saved, cast and moved like ones.
        self.mean = torch.nn.Parameter(torch.zeros(channels), requires_grad=False)
        self.scale = torch.nn.Parameter(torch.ones(channels), requires_grad=False)

    @property
    def codebook_size(self) -> None:
        """Tokens are vectors, not numbers."""
        return None

    @property
    def token_channels(self) -> int:
        """c = C p p."""
        return len(self.mean)

    @property
    def token_range(self) -> float:
        """Pixels in [-1, 1] give tokens in [-token_range, token_range]."""
        return float(((1 + self.mean.abs()) / self.scale).max())

    def patches(self, images: Tensor) -> Tensor:
        """Images (B, C, S, S) in [-1, 1] to patches (B, N, c), row after row of the grid."""
        check_images(images, self.config["in_channels"], self.config["sample_size"])
        images = pad(images, (self.config["padding"],) * 4, value=-1.0)
        return pixel_unshuffle(images, self.config["patch_size"]).flatten(2).transpose(1, 2)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images (B, C, S, S) in [-1, 1] to tokens (B, N, c)."""
        return (self.patches(images) - self.mean) / self.scale

    def decode(self, tokens: Tensor) -> Tensor:
        """Tokens (B, N, c) to images (B, C, S, S), in [-1, 1] where the tokens lie within their range."""
        patches = tokens * self.scale + self.mean
        images = pixel_shuffle(patches.transpose(1, 2).unflatten(2, self.grid), self.config["patch_size"])
        inside = slice(self.config["padding"], self.config["padding"] + self.config["sample_size"])
        return images[:, :, inside, inside]
