"""A list of stages: the side of each token grid, coarse to fine; with what follows from it, as pure functions."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor


def check_stages(stages: Sequence[int], size: int | None = None) -> tuple[int, ...]:
    """The stages as a tuple.

    Args:
        stages: p_0 <= ... <= p_{K-1}; repeats are allowed.
        size: N, which the last stage must have; None for any.

    Raises:
        ValueError: no stages, a side that is no positive whole number, a smaller one after a larger, or another end.
    """
    sides = list(stages)
    whole = all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in sides)
    if not sides or not whole or any(b < a for a, b in itertools.pairwise(sides)):
        raise ValueError(f"stages must be positive whole numbers that never decrease, got {sides}.")
    if size is not None and sides[-1] != size:
        raise ValueError(f"stages must end with the side of the latent map, {size}, got {sides}.")
    return tuple(sides)


def token_counts(stages: Sequence[int]) -> list[int]:
    """n_k = p_k^2 for each stage."""
    return [side**2 for side in stages]


def stage_numbers(stages: Sequence[int]) -> Tensor:
    """(L,) int64: the stage of each position of the sequence."""
    # On the CPU also where a model is built on the meta device, which knows no lengths.
    counts = torch.tensor(token_counts(stages), device="cpu")
    return torch.arange(len(stages), device="cpu").repeat_interleave(counts)


def stage_mask(stages: Sequence[int]) -> Tensor:
    """(L, L) bool, True = may attend: each position sees its own stage and all before it."""
    numbers = stage_numbers(stages)
    return numbers[:, None] >= numbers[None]
