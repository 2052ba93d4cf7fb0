"""The head of MAR: a small diffusion network that says what one continuous token may be, given its vector."""

from __future__ import annotations

import torch
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor, nn
from torch.nn import functional as F

from gendiff.models.masked.checks import check_counts

FREQUENCIES = 256
"""Width of the sinusoidal embedding of time."""


class HeadBlock(nn.Module):
    """A residual MLP whose norm and gate are set by time and condition.

    Args:
        width: w.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.fc1 = nn.Linear(width, width)
        self.fc2 = nn.Linear(width, width)
        self.modulation = nn.Linear(width, 3 * width)

    def forward(self, h: Tensor, setting: Tensor) -> Tensor:
        """h (M, w), setting (M, w) after its activation, to (M, w)."""
        shift, scale, gate = self.modulation(setting).chunk(3, dim=-1)
        x = torch.addcmul(shift, self.norm(h), 1 + scale)
        return torch.addcmul(h, gate, self.fc2(F.silu(self.fc1(x))))


class DiffusionHead(nn.Module):
    """Noise and variance of noisy tokens, each token by itself.

    Args:
        channels: c of a token.
        condition_dim: D of the backbone's vectors.
        width: w.
        num_layers: residual blocks.
        token_range: tokens lie in [-token_range, token_range], which a sampler may enforce; None where unknown.

    Raises:
        ValueError: a count below 1, or a range that is not positive.

    Source: Li et al. 2024 (MAR, arXiv 2406.11838), section 3.2 and appendix B; as in its released weights.
    """

    def __init__(
        self, channels: int, condition_dim: int, width: int, num_layers: int, token_range: float | None = None
    ) -> None:
        super().__init__()
        check_counts(token_channels=channels, head_width=width, head_layers=num_layers)
        if token_range is not None and not token_range > 0:
            raise ValueError(f"token_range must be above 0, got {token_range!r}.")
        self.token_channels = channels
        self.token_range = token_range
        self.time_in = nn.Linear(FREQUENCIES, width)
        self.time_out = nn.Linear(width, width)
        self.condition_embed = nn.Linear(condition_dim, width)
        self.input_proj = nn.Linear(channels, width)
        self.blocks = nn.ModuleList(HeadBlock(width) for _ in range(num_layers))
        self.norm_out = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.modulation_out = nn.Linear(width, 2 * width)
        self.proj_out = nn.Linear(width, 2 * channels)
        self.initialise()

    def forward(self, x: Tensor, t: Tensor, z: Tensor) -> Tensor:
        """Noise, and where the log variance lies in its range.

        Args:
            x: (M, c) noisy tokens.
            t: (M,) timesteps 0 .. 999, or (1,) for all.
            z: (M, D) conditions.

        Returns: (M, 2 c): the noise in x, then -1 for the least log variance of a reverse step .. 1 for the largest.
        """
        return self.denoise(x, self.time_embed(t) + self.condition_embed(z.to(self.proj_out.weight.dtype)))

    def time_embed(self, t: Tensor) -> Tensor:
        """(M,) to (M, w)."""
        waves = get_timestep_embedding(t, FREQUENCIES, flip_sin_to_cos=True, downscale_freq_shift=0)
        return self.time_out(F.silu(self.time_in(waves.to(self.time_in.weight.dtype))))

    def denoise(self, x: Tensor, setting: Tensor) -> Tensor:
        """As `forward`, with `time_embed` + `condition_embed` (M, w), which callers may know how to share."""
        setting = F.silu(setting)
        h = self.input_proj(x.to(self.input_proj.weight.dtype))
        for block in self.blocks:
            h = block(h, setting)
        shift, scale = self.modulation_out(setting).chunk(2, dim=-1)
        return self.proj_out(torch.addcmul(shift, self.norm_out(h), 1 + scale))

    def initialise(self) -> None:
        """Xavier weights, small ones for time, and zeros in modulations and output, as published."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for layer in (self.time_in, self.time_out):
            nn.init.normal_(layer.weight, std=0.02)
        for layer in (*(block.modulation for block in self.blocks), self.modulation_out, self.proj_out):
            nn.init.zeros_(layer.weight)  # type: ignore[arg-type]
