"""What a training step of a diffusion head draws: how much is hidden, which tokens, and how noisy they are."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gendiff.samplers.token_diffusion import TRAIN_STEPS


def draw_share(least: float, std: float, generator: torch.Generator) -> float:
    """A normal number around 1 with deviation `std`, truncated to [least, 1]."""
    lowest = torch.special.ndtr(torch.tensor((least - 1) / std, dtype=torch.float64))
    drawn = lowest + torch.rand((), generator=generator, dtype=torch.float64) * (0.5 - lowest)
    return min(1.0, max(least, 1 + std * float(torch.special.ndtri(drawn))))


def hide_as_many(batch: int, num_tokens: int, share: float, generator: torch.Generator) -> Tensor:
    """(B, N) bool, True = hidden: a share of each image's tokens, rounded up, at least one."""
    ranks = torch.rand(batch, num_tokens, generator=generator).argsort(dim=1).argsort(dim=1)
    return ranks < max(1, math.ceil(num_tokens * share))


def draw_times(count: int, repeats: int, generator: torch.Generator) -> Tensor:
    """Timesteps (repeats, count) int64, uniform over 0 .. 999: of each token's, one in each of `repeats` equal parts.

    Spread so they change no expectation and lower the noise of the loss.
    """
    parts = torch.arange(repeats)[:, None]
    drawn = (parts + torch.rand(repeats, count, generator=generator)) * (TRAIN_STEPS / repeats)
    return drawn.long().clamp_(max=TRAIN_STEPS - 1)
