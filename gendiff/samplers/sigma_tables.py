"""The grid G of a diffusers scheduler as a table of noise levels, read, resampled under a warp, and written back.

`sigmas` of a flow scheduler are shares of noise and are interpolated linearly; those of VP and VE schedulers are ratios
noise / data and are interpolated in their logarithm, but for a last interval that ends at 0, which is linear.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .noise_levels import is_flow
from .warps import PARAMETERS, WarpSpec

_SMALLEST_SIGNAL = 2.0**-24  # what diffusers' own sigma tables put in place of a zero terminal signal-to-noise ratio


def nodes_of(scheduler: Any) -> Tensor:
    """The noise levels between which a scheduler steps, each once: (N + 1,) float64, after `set_timesteps`.

    Schedulers that evaluate the network twice a step repeat the levels inside; stepping through those as if they were
    levels of their own is wrong.
    """
    sigmas = scheduler.sigmas.detach().to("cpu", torch.float64)
    if hasattr(scheduler, "sigmas_interpol"):  # DPM-Solver-2: s_0, s_1, s_1, .., s_N, s_N and s_N once more
        return torch.cat([sigmas[:1], sigmas[1:-1:2]])
    if scheduler.order == 2:  # Heun: s_0, s_1, s_1, .., s_N
        return torch.cat([sigmas[:1], sigmas[1:-1:2], sigmas[-1:]])
    return sigmas


def resampled(nodes: Tensor, spec: WarpSpec, *, log: bool) -> Tensor:
    """Levels G(w(i / N)), where `nodes` are G(i / N).

    Args:
        nodes: (N + 1,) float64. A last level that repeats the one before it (a solver that ends above 0) is no step,
            and is repeated again.
        log: interpolate logarithms, where both ends of an interval are above 0.

    Returns: (N + 1,) float64; the first and the last level are those of `nodes`.
    """
    if len(nodes) > 2 and float((nodes[-1] - nodes[-2]).abs()) <= 1e-5 * float(nodes[-2].abs()):
        return torch.cat([resampled(nodes[:-1], spec, log=log), nodes[-1:]])
    count = len(nodes) - 1
    places = spec.positions(count) * count
    index = places.floor().clamp(0, count - 1)
    share, index = places - index, index.long()
    start, end = nodes[index], nodes[index + 1]
    linear = (1 - share) * start + share * end
    if not log:
        return linear
    both = (start > 0) & (end > 0)
    powers = torch.where(both, start, 1.0) ** (1 - share) * torch.where(both, end, 1.0) ** share
    return torch.where(both, powers, linear)


def training_sigmas(scheduler: Any) -> Tensor:
    """noise / data at every training timestep of a VP scheduler, increasing, (T,) float64."""
    signal = scheduler.alphas_cumprod.detach().to("cpu", torch.float64).clamp_min(_SMALLEST_SIGNAL)
    return ((1 - signal) / signal).sqrt()


def timesteps_at(sigmas: Tensor, table: Tensor) -> Tensor:
    """Fractional training timesteps of noise levels, linear in log sigma as in diffusers' own maps, within [0, T - 1].

    Args:
        sigmas: (n,) float64, at least 0.
        table: `training_sigmas`.
    """
    logs = sigmas.clamp_min(1e-10).log().numpy()
    return torch.from_numpy(np.interp(logs, table.log().numpy(), np.arange(len(table), dtype=np.float64)))


def distinct(timesteps: Tensor) -> Tensor:
    """Whole timesteps that fall at every step: t_i = min(t_i, t_(i-1) - 1). They may end below 0. (n,) int64"""
    # t_i + i must not rise, so it is its running minimum.
    ranks = torch.arange(len(timesteps))
    return (timesteps + ranks).cummin(0).values - ranks


def whole_timesteps(sigmas: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct whole timesteps for noise levels, and the levels to go with them.

    A timestep that had to move takes its level along: a network told of one level and handed another makes an error.

    Args:
        sigmas: levels of steps 0 .. N - 1, (N,) float64, falling.
        table: `training_sigmas`.

    Returns: timesteps (N,) int64, the last of which is below 0 if there are too few; and levels (N,) float64.
    """
    rounded = timesteps_at(sigmas, table).round().long()
    timesteps = distinct(rounded)
    return timesteps, torch.where(timesteps == rounded, sigmas, table[timesteps.clamp_min(0)])


def warped_tables(scheduler: Any, spec: WarpSpec) -> tuple[Tensor, Tensor]:
    """Levels (N + 1,) and timesteps (N,) of a scheduler under a warp, both float64, each node once.

    Args:
        scheduler: after its own `set_timesteps`.
        spec: the warp.

    Raises:
        ValueError: steps of this warp fall on one noise level, or on one whole timestep of a VP model; names the number
            of steps, of collisions, and how far the warp may go.
    """
    flow, config = is_flow(scheduler), scheduler.config
    whole = not scheduler.timesteps.is_floating_point()
    nodes = nodes_of(scheduler)
    table = torch.empty(0) if flow else training_sigmas(scheduler)
    # A schedule that itself repeats whole timesteps (Karras) is stepped by position, and repeats do no harm there.
    strict = whole and not flow and len(scheduler.timesteps.unique()) == len(scheduler.timesteps)

    def attempt(spec: WarpSpec) -> tuple[Tensor, Tensor, bool]:
        sigmas = resampled(nodes, spec, log=not flow)
        if flow:
            timesteps = sigmas[:-1] * config.num_train_timesteps
            if whole:  # as UniPC truncates; stored levels are float32, so a whole timestep may lie just below itself
                timesteps = (timesteps + 1e-4).floor()
        elif config.get("timestep_type") == "continuous" and config.prediction_type == "v_prediction":
            timesteps = 0.25 * sigmas[:-1].log()
        elif strict:
            timesteps, levels = whole_timesteps(sigmas[:-1], table)
            sigmas = torch.cat([levels, sigmas[-1:]])
        else:
            timesteps = timesteps_at(sigmas[:-1], table)
            timesteps = timesteps.round() if whole else timesteps
        kept = repeats(sigmas.float()) <= repeats(nodes.float())
        return sigmas, timesteps.double(), kept and (not strict or float(timesteps[-1]) >= 0)

    sigmas, timesteps, fits = attempt(spec)
    if not fits:
        plain = resampled(nodes, spec, log=not flow)
        raw = timesteps_at(plain[:-1], table).round() if strict else plain.float()
        raise_collisions(spec, len(timesteps), repeats(raw), lambda tried: attempt(tried)[2])
    return sigmas, timesteps


def repeats(values: Tensor) -> int:
    """How many entries say again what another has said."""
    return len(values) - len(values.unique())


def raise_collisions(spec: WarpSpec, steps: int, collisions: int, fits: Any) -> None:
    """Raise the ValueError of a warp that leaves fewer distinct steps than N; `fits(spec)` tells which would do."""
    label = PARAMETERS[spec.name][0]
    good, bad = spec.u_c if spec.name == "split" else 1.0, float(spec.parameter)
    for _ in range(40):
        middle = (good + bad) / 2
        good, bad = (middle, bad) if fits(_with(spec, middle)) else (good, middle)
    side = "largest" if spec.parameter > good else "smallest"
    # Rounded towards the identity, so that the number in the message is safe as well.
    digits = 1e3
    safe = (np.floor(good * digits) if side == "largest" else np.ceil(good * digits)) / digits
    raise ValueError(
        f"a warp ({spec.label}) of N = {steps} steps makes {collisions} of them collide with others; the {side} safe "
        f"{label} is {safe:g}."
    )


def _with(spec: WarpSpec, parameter: float) -> WarpSpec:
    return WarpSpec(spec.name, parameter, spec.u_c, spec.omega)
