"""Which tokens are hidden when MAGE is trained, and which of them its encoder does not even see."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def hide_and_drop(
    batch: int,
    num_tokens: int,
    generator: torch.Generator,
    dropped_share: float = 0.5,
    mean: float = 0.55,
    std: float = 0.25,
) -> tuple[Tensor, Tensor]:
    """Hidden and dropped tokens, both (B, N) bool; what is dropped is hidden, and not all of an image is dropped.

    The hidden share of an image is normal, truncated to [dropped_share, 1]. The shares of a batch are spread evenly,
    one in each of B equally likely parts, which changes no expectation and lowers the noise of the loss.

    Args:
        batch: B.
        num_tokens: N.
        generator: of all draws.
        dropped_share: of all tokens, rounded up: as many in each image.
        mean: of the normal distribution before it is cut.
        std: its deviation.

    Source: Li et al. 2023 (MAGE), section 3.2.
    """
    normal = torch.distributions.Normal(
        torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64), validate_args=False
    )
    low, high = normal.cdf(torch.tensor([dropped_share, 1.0], dtype=torch.float64))
    parts = torch.randperm(batch, generator=generator) + torch.rand(batch, generator=generator, dtype=torch.float64)
    shares = normal.icdf(low + (high - low) * parts / batch).clamp(dropped_share, 1)
    counts = (num_tokens * shares).ceil().clamp(1, num_tokens)
    ranks = torch.rand(batch, num_tokens, generator=generator).argsort(dim=1).argsort(dim=1)
    dropped = min(num_tokens - 1, math.ceil(num_tokens * dropped_share))
    return ranks < counts[:, None], ranks < dropped
