"""Image encoder: one Gaussian over the noise of all causal variables, and one over style."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from torch import Tensor, nn

LOGVAR_RANGE = (-10.0, 4.0)
POOLED = 4


@dataclass
class CausalEncoderOutput(BaseOutput):
    """Posterior of a batch.

    Attributes:
        mean, logvar: of the causal noise u, (B, D).
        style_mean, style_logvar: of the style s outside the graph, (B, S), S may be 0.
    """

    mean: Tensor
    logvar: Tensor
    style_mean: Tensor
    style_logvar: Tensor


class CausalEncoder(ModelMixin, ConfigMixin):
    """Strided convolutions, a 4 x 4 grid of features (position is signal), and one linear head.

    GroupNorm, not BatchNorm: an image's factors may not depend on its batch mates.

    Args:
        sample_size: side of the square image in pixels.
        in_channels: channels of the image.
        latent_dim: D, width of all causal blocks.
        style_dim: width of the style block, 0 for none.
        block_out_channels: width of each level; levels after the stem halve the side while it is above 4.
        norm_num_groups: groups of every GroupNorm.

    Source: Komanduri et al. 2024 (CausalDiffAE), section 4.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int,
        in_channels: int,
        latent_dim: int,
        style_dim: int = 0,
        block_out_channels: tuple[int, ...] = (32, 64, 128),
        norm_num_groups: int = 8,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(in_channels, block_out_channels[0], 3, padding=1), nn.SiLU()]
        side, width = sample_size, block_out_channels[0]
        for next_width in block_out_channels:
            stride = 2 if side > POOLED else 1
            layers += [
                nn.Conv2d(width, next_width, 3, stride=stride, padding=1),
                nn.GroupNorm(norm_num_groups, next_width),
                nn.SiLU(),
            ]
            side, width = -(-side // stride), next_width
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(POOLED), nn.Flatten())
        self.head = nn.Linear(width * POOLED**2, 2 * (latent_dim + style_dim))

    def forward(self, image: Tensor, return_dict: bool = True) -> CausalEncoderOutput | tuple[Tensor, ...]:
        """Encode `image` (B, C, S, S) in [-1, 1]."""
        latent_dim, style_dim = self.config["latent_dim"], self.config["style_dim"]
        mean, logvar = self.head(self.features(image)).chunk(2, dim=1)
        logvar = torch.clamp(logvar, *LOGVAR_RANGE)
        sizes = [latent_dim, style_dim]
        (mean, style_mean), (logvar, style_logvar) = mean.split(sizes, dim=1), logvar.split(sizes, dim=1)
        if not return_dict:
            return (mean, logvar, style_mean, style_logvar)
        return CausalEncoderOutput(mean=mean, logvar=logvar, style_mean=style_mean, style_logvar=style_logvar)
