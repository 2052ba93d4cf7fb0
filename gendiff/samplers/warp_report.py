"""What a warp does to a schedule, in steps: what early noise levels gain, late ones lose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .noise_levels import is_flow
from .sigma_tables import nodes_of, training_sigmas
from .warped import warp_scheduler
from .warps import WarpSpec


@dataclass(frozen=True)
class StepTrade:
    """How a warp moves steps over a noise share.

    Attributes:
        share: the noise share s in [0, 1].
        plain: steps taken at s or more without the warp.
        warped: the same with it.
        steps: N of either.
    """

    share: float
    plain: int
    warped: int
    steps: int


def noise_shares(scheduler: Any) -> Tensor:
    """Noise share s of every node of a schedule, 1 = pure noise, each node once, (N + 1,) float64.

    Args:
        scheduler: of diffusers, with a table of noise levels or with `alphas_cumprod`, after `set_timesteps`.
    """
    if not hasattr(scheduler, "sigmas"):
        # The node a run ends at is not among its timesteps.
        final = torch.as_tensor(scheduler.final_alpha_cumprod).double().reshape(1)
        levels = training_sigmas(scheduler)[scheduler.timesteps.cpu().long()]
        sigmas = torch.cat([levels, ((1 - final) / final).sqrt()])
        return sigmas / (1 + sigmas)
    nodes = nodes_of(scheduler)
    if not is_flow(scheduler):
        return nodes / (1 + nodes)
    # Mochi counts its levels from data to noise.
    return 1 - nodes if scheduler.config.get("invert_sigmas", False) else nodes


def steps_at_least(scheduler: Any, share: float) -> int:
    """How many steps start at a noise share of at least `share`: those of Wan2.2's high-noise expert at its boundary.

    Args:
        scheduler: after `set_timesteps`, warped or not.
        share: s in [0, 1].

    Raises:
        ValueError: a share outside [0, 1].
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must be within [0, 1], got {share!r}.")
    return int((noise_shares(scheduler)[:-1] >= share).sum())


def steps_before(spec: WarpSpec, num_steps: int, position: float) -> int:
    """How many of N steps start before `position` of the base: N * position without a warp.

    Args:
        spec: the warp.
        num_steps: N.
        position: u in [0, 1] of the base's grid.

    Raises:
        ValueError: N or the position out of range.
    """
    if not 0 <= position <= 1:
        raise ValueError(f"position must be within [0, 1], got {position!r}.")
    return int((spec.positions(num_steps)[:-1] < position).sum())


def step_trade(
    scheduler: Any, spec: WarpSpec, num_steps: int, shares: tuple[float, ...] = (0.9, 0.7, 0.5, 0.3, 0.1), **set: Any
) -> list[StepTrade]:
    """Steps at or above noise shares, without and with a warp. The scheduler is left as it is.

    Args:
        scheduler: one that `warp_scheduler` takes.
        spec: the warp.
        num_steps: N.
        shares: noise shares to count at.
        set: further arguments of the scheduler's `set_timesteps`, such as `mu`.

    Raises:
        ValueError: as `warp_scheduler`, or a share outside [0, 1].
    """
    plain = warp_scheduler(scheduler, WarpSpec(), force=True)
    warped = warp_scheduler(scheduler, spec, force=True)
    for each in (plain, warped):
        each.set_timesteps(num_steps, **set)
    return [StepTrade(s, steps_at_least(plain, s), steps_at_least(warped, s), num_steps) for s in shares]
