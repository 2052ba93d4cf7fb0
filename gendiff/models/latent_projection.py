"""From causal factors to the vector that conditions the decoder."""

from __future__ import annotations

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn


class LatentProjection(ModelMixin, ConfigMixin):
    """Two layers over the blocks of all variables and the style; a dropped block is a learned vector.

    The null is learned because zero is a legitimate mid-range value of a block.

    Args:
        block_dims: latent width of each variable, in the graph's order.
        embed_dim: E, width of the result; four times the decoder's first width.
        style_dim: width of the style block, 0 for none.
        hidden_dim: width of the hidden layer.
        p_uncond: probability that training drops all blocks at once; above 0 permits guidance "uncond".
        p_block: probability that training drops each block by itself; above 0 permits guidance "affected".

    Source: Ho & Salimans 2022 for dropping conditions; learned null and two layers are ours.
    """

    @register_to_config
    def __init__(
        self,
        block_dims: list[int],
        embed_dim: int,
        style_dim: int = 0,
        hidden_dim: int = 256,
        p_uncond: float = 0.1,
        p_block: float = 0.1,
    ) -> None:
        super().__init__()
        for name, p in (("p_uncond", p_uncond), ("p_block", p_block)):
            if not 0 <= p < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {p}.")
        self.widths = [*block_dims, style_dim] if style_dim else list(block_dims)
        total = sum(self.widths)
        self.null = nn.Parameter(torch.randn(total) / total**0.5)
        self.hidden = nn.Linear(total, hidden_dim)
        self.out = nn.Linear(hidden_dim, embed_dim)

    def forward(self, z: Tensor, style: Tensor | None = None, keep: Tensor | None = None) -> Tensor:
        """Condition e (B, E) of factors z (B, D) and style (B, S).

        Args:
            keep: bool (B, blocks), the style being the last block if there is one; False replaces a block by its
                null. None keeps all.
        """
        latents = z if style is None else torch.cat([z, style], dim=1)
        latents = latents.to(self.null.dtype)
        if keep is not None:
            widths = torch.tensor(self.widths, device=keep.device)
            latents = torch.where(keep.repeat_interleave(widths, dim=1), latents, self.null)
        return self.out(nn.functional.silu(self.hidden(latents)))

    def draw_keep(self, batch_size: int, generator: torch.Generator | None = None) -> Tensor:
        """Mask bool (B, blocks) of the blocks that a training step keeps, drawn on the CPU."""
        keep_all = torch.rand(batch_size, 1, generator=generator) >= self.config["p_uncond"]
        keep_block = torch.rand(batch_size, len(self.widths), generator=generator) >= self.config["p_block"]
        return keep_all & keep_block
