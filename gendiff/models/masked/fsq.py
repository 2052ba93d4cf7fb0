"""A convolutional tokenizer whose codes are the corners of a fixed grid: nothing to learn, nothing to die."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import Decoder, Encoder
from torch import Tensor, nn
from torch.nn.functional import pad

from gendiff.models.masked.checks import check_codes, check_counts, check_images

SLACK = 1e-3
"""By how much the bound lies beyond the outermost levels, so that these can be reached."""


class FSQTokenizer(ModelMixin, ConfigMixin):
    """Finite scalar quantisation: each channel of the latent map is rounded to one of a few levels.

    The number of a code is written in a mixed radix: the first channel is the fastest digit.

    Args:
        sample_size: side S of images, in pixels.
        in_channels: C of images.
        levels: of each latent channel; V is their product.
        patch_size: side of the patches that the first convolution reads, at their stride.
        block_out_channels: width of each level of the network; every further one halves the grid again.
        layers_per_block: residual blocks of a level.
        norm_num_groups: of group norms.
        padding: pixels added around an image, at its darkest value.

    Raises:
        ValueError: levels outside 2 .. 256, or a padded side that is not a multiple of the stride.

    Source: Mentzer et al. 2023 (FSQ, arXiv 2309.15505), section 3.
    """

    _supports_gradient_checkpointing = False

    @register_to_config
    def __init__(
        self,
        sample_size: int = 28,
        in_channels: int = 1,
        levels: Sequence[int] = (4, 4, 4),
        patch_size: int = 2,
        block_out_channels: Sequence[int] = (48,),
        layers_per_block: int = 1,
        norm_num_groups: int = 8,
        padding: int = 0,
    ) -> None:
        super().__init__()
        check_counts(sample_size=sample_size, in_channels=in_channels, patch_size=patch_size)
        if not levels or any(
            isinstance(count, bool) or not isinstance(count, int) or not 2 <= count <= 256 for count in levels
        ):
            raise ValueError(f"levels must be whole numbers from 2 to 256, got {list(levels)}.")
        self.stride = patch_size * 2 ** (len(block_out_channels) - 1)
        if padding < 0 or (sample_size + 2 * padding) % self.stride:
            raise ValueError(
                f"sample_size + 2 padding must be a multiple of the stride {self.stride}, got {sample_size} + 2 * "
                f"{padding}."
            )
        self.register_to_config(levels=list(levels), block_out_channels=list(block_out_channels))
        side = (sample_size + 2 * padding) // self.stride
        self.grid = (side, side)
        depth, width, channels = len(block_out_channels), block_out_channels[0], len(levels)
        self.encoder = Encoder(
            in_channels,
            channels,
            ("DownEncoderBlock2D",) * depth,
            tuple(block_out_channels),
            layers_per_block,
            norm_num_groups,
            double_z=False,
            mid_block_add_attention=False,
        )
        self.decoder = Decoder(
            channels,
            in_channels,
            ("UpDecoderBlock2D",) * depth,
            tuple(block_out_channels),
            layers_per_block,
            norm_num_groups,
            mid_block_add_attention=False,
        )
        self.encoder.conv_in = nn.Conv2d(in_channels, width, 2 * patch_size, patch_size, patch_size // 2)
        self.decoder.conv_out = nn.Sequential(  # type: ignore[assignment]
            nn.Conv2d(width, in_channels * patch_size**2, 3, padding=1), nn.PixelShuffle(patch_size)
        )
        counts = torch.tensor(levels)
        # They follow from the levels: not part of a checkpoint.
        self.register_buffer("_counts", counts, persistent=False)
        self.register_buffer("_radix", torch.cat([torch.ones(1).long(), counts.cumprod(0)[:-1]]), persistent=False)

    @property
    def codebook_size(self) -> int:
        """V."""
        return math.prod(self.config["levels"])

    @property
    def token_channels(self) -> None:
        """Tokens are numbers, not vectors."""
        return None

    def forward(self, images: Tensor) -> Tensor:
        """Reconstruction (B, C, S, S), with gradients that pass rounding unchanged (straight through)."""
        latent = self._latent(images)
        digits = self._bounded(latent)
        rounded = digits + (digits.round() - digits).detach()
        return self._decoded(self._centred(rounded).unflatten(1, self.grid).movedim(-1, 1))

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images (B, C, S, S) in [-1, 1] to tokens (B, N) int64."""
        return self.digits_to_ids(self._bounded(self._latent(images)).round().long())

    def decode(self, tokens: Tensor) -> Tensor:
        """Tokens (B, N) int64 to images (B, C, S, S), about [-1, 1].

        Raises:
            ValueError: tokens outside 0 .. V - 1.
        """
        check_codes(tokens, self.codebook_size)
        dtype = self.decoder.conv_in.weight.dtype
        values = self._centred(self.ids_to_digits(tokens).to(dtype))
        return self._decoded(values.unflatten(1, self.grid).movedim(-1, 1))

    def digits_to_ids(self, digits: Tensor) -> Tensor:
        """Digits (..., channels) int64, each from 0 to its levels less 1, to numbers of codes (...)."""
        return (digits * self._radix).sum(dim=-1)

    def ids_to_digits(self, ids: Tensor) -> Tensor:
        """Numbers of codes (...) int64 to digits (..., channels)."""
        return ids[..., None] // self._radix % self._counts

    def _latent(self, images: Tensor) -> Tensor:
        """(B, N, channels), unbounded."""
        check_images(images, self.config["in_channels"], self.config["sample_size"])
        latent = self.encoder(pad(images, (self.config["padding"],) * 4, value=-1.0))
        return latent.flatten(2).transpose(1, 2)

    def _bounded(self, latent: Tensor) -> Tensor:
        """Values that round to digits 0 .. levels - 1; 0 lies in the middle."""
        latent = latent.float() if latent.dtype in (torch.float16, torch.bfloat16) else latent
        half = (self._counts - 1) / 2
        return torch.tanh(latent) * half * (1 + SLACK) + half

    def _centred(self, digits: Tensor) -> Tensor:
        """Digits to [-1, 1], what the decoder reads."""
        return digits * (2 / (self._counts - 1)).to(digits.dtype) - 1

    def _decoded(self, values: Tensor) -> Tensor:
        images = self.decoder(values.to(self.decoder.conv_in.weight.dtype))
        inside = slice(self.config["padding"], self.config["padding"] + self.config["sample_size"])
        return images[:, :, inside, inside]
