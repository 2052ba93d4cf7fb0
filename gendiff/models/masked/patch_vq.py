"""A tokenizer without a network: each patch of pixels becomes the number of its nearest centre."""

from __future__ import annotations

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor
from torch.nn.functional import pad, pixel_shuffle, pixel_unshuffle

from gendiff.models.masked.checks import check_codes, check_counts, check_images

BLOCK = 2**16
"""Patches whose distances to all centres are held at a time."""


class PatchVQTokenizer(ModelMixin, ConfigMixin):
    """Vector quantisation of raw patches, with centres found by k-means.

    Args:
        sample_size: side S of images, in pixels.
        in_channels: C of images.
        patch_size: side p of a patch; the grid has ((S + 2 padding) / p)^2 tokens.
        codebook_size: V, centres.
        padding: pixels added around an image, at its darkest value.

    Raises:
        ValueError: the padded side is not a multiple of p.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int = 28,
        in_channels: int = 1,
        patch_size: int = 2,
        codebook_size: int = 64,
        padding: int = 0,
    ) -> None:
        super().__init__()
        check_counts(
            sample_size=sample_size, in_channels=in_channels, patch_size=patch_size, codebook_size=codebook_size
        )
        if padding < 0 or (sample_size + 2 * padding) % patch_size:
            raise ValueError(
                f"sample_size + 2 padding must be a multiple of patch_size {patch_size}, got {sample_size} + 2 * "
                f"{padding}."
            )
        side = (sample_size + 2 * padding) // patch_size
        self.grid = (side, side)
        # Not trained by gradients; a parameter, so that it is saved, cast and moved like one.
        self.codebook = torch.nn.Parameter(torch.zeros(codebook_size, in_channels * patch_size**2), requires_grad=False)

    @property
    def codebook_size(self) -> int:
        """V."""
        return self.config["codebook_size"]

    @property
    def token_channels(self) -> None:
        """Tokens are numbers, not vectors."""
        return None

    def patches(self, images: Tensor) -> Tensor:
        """Images (B, C, S, S) in [-1, 1] to patches (B, N, C p p), row after row of the grid."""
        check_images(images, self.config["in_channels"], self.config["sample_size"])
        images = pad(images, (self.config["padding"],) * 4, value=-1.0)
        return pixel_unshuffle(images, self.config["patch_size"]).flatten(2).transpose(1, 2)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images (B, C, S, S) in [-1, 1] to tokens (B, N) int64."""
        patches = self.patches(images)
        codebook = self.codebook.float()
        nearest = [torch.cdist(rows.float(), codebook).argmin(dim=1) for rows in patches.flatten(0, 1).split(BLOCK)]
        return torch.cat(nearest).view(patches.shape[:2])

    def decode(self, tokens: Tensor) -> Tensor:
        """Tokens (B, N) int64 to images (B, C, S, S) in [-1, 1].

        Raises:
            ValueError: tokens outside 0 .. V - 1.
        """
        check_codes(tokens, self.codebook_size)
        grid = self.codebook[tokens].transpose(1, 2).unflatten(2, self.grid)
        images = pixel_shuffle(grid, self.config["patch_size"])
        inside = slice(self.config["padding"], self.config["padding"] + self.config["sample_size"])
        return images[:, :, inside, inside]
