"""A small network that tells pictures from reconstructions, patch by patch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn


class PatchDiscriminator(ModelMixin, ConfigMixin):
    """Strided convolutions and one number for each patch, the higher the more it looks like a picture.

    Normalised by groups: a mean over the batch would mix pictures with reconstructions.

    Args:
        in_channels: C, of the images.
        block_out_channels: width of each level; each halves the side.
        norm_num_groups: of all norms but the first level's, which has none.

    Raises:
        ValueError: no level, or a width that is not a multiple of the number of groups.

    Source: Isola et al. 2017 (CVPR), "PatchGAN".
    """

    @register_to_config
    def __init__(
        self, in_channels: int = 3, block_out_channels: Sequence[int] = (64, 128, 256), norm_num_groups: int = 8
    ) -> None:
        super().__init__()
        widths = tuple(block_out_channels)
        if not widths or any(width < 1 or width % norm_num_groups for width in widths):
            raise ValueError(
                f"block_out_channels must be multiples of {norm_num_groups} groups, at least one, got {widths}."
            )
        layers: list[nn.Module] = [nn.Conv2d(in_channels, widths[0], 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for narrow, wide in pairwise(widths):
            layers += [
                nn.Conv2d(narrow, wide, 4, stride=2, padding=1, bias=False),
                nn.GroupNorm(norm_num_groups, wide),
                nn.LeakyReLU(0.2),
            ]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 3, padding=1))

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, S, S) to (B, 1, S / 2^levels, S / 2^levels), no range."""
        return self.layers(images)

    def frozen(self, images: Tensor) -> Tensor:
        """As `forward`, with gradients for the images and none for the weights."""
        weights = {name: parameter.detach() for name, parameter in self.named_parameters()}
        return torch.func.functional_call(self, weights, (images,))
