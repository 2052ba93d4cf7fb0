"""Random numbers of samplers over tokens: from generators alone, and an image's from its own where it has one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Generators = torch.Generator | list[torch.Generator] | None


def uniform(shape: Sequence[int], generator: Generators, like: Tensor) -> Tensor:
    """Numbers in [0, 1), each sample's from its own generator where there are several, drawn where it lives."""
    if not isinstance(generator, list):
        device = like.device if generator is None else generator.device
        return torch.rand(*shape, generator=generator, device=device).to(like.device)
    rows = [torch.rand(*shape[1:], generator=one, device=one.device).to(like.device) for one in generator]
    return torch.stack(rows)


def gumbel(shape: Sequence[int], generator: Generators, like: Tensor) -> Tensor:
    """Standard Gumbel noise, float32, each sample's from its own generator where there are several."""
    drawn = uniform(shape, generator, like).clamp(min=1e-20)
    return -(-drawn.log()).clamp(min=1e-20).log()


def draw_tokens(logits: Tensor, generator: Generators) -> Tensor:
    """Tokens (B, n) drawn from logits (B, n, V), each by one uniform number through its distribution function.

    So the same generator draws the same tokens on every device, but for rounding.
    """
    return pick_tokens(logits, uniform(logits.shape[:2], generator, logits))


def pick_tokens(logits: Tensor, drawn: Tensor) -> Tensor:
    """The token that each of `drawn` (B, n), uniform in [0, 1), stands for under logits (B, n, V)."""
    mass = logits.softmax(dim=-1).cumsum_(dim=-1)
    whole = mass[..., -1:]
    drawn = drawn[..., None] * whole
    # Below the whole, or rounding could land behind the last code that has any probability.
    drawn = torch.minimum(drawn, torch.nextafter(whole, torch.zeros_like(whole)))
    return torch.searchsorted(mass, drawn, right=True)[..., 0]
