"""How a diffusion head draws continuous tokens: a short ancestral walk for each, all in one batch."""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import accumulate
from typing import Protocol

import torch
from diffusers import DDPMScheduler, SchedulerMixin  # noqa: F401 (what a module of components must hold)
from diffusers.configuration_utils import register_to_config
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from gendiff.nn.wide import wide
from gendiff.samplers.guidance import Strength, guided_jointly, is_off
from gendiff.samplers.loop import Predictor, Step, sample

TRAIN_STEPS = 1000
"""Noise levels that a head is trained on."""


class TokenHead(Protocol):
    """What draws tokens needs of a head, such as `DiffusionHead`."""

    @property
    def token_channels(self) -> int: ...

    @property
    def token_range(self) -> float | None: ...

    def __call__(self, x: Tensor, t: Tensor, z: Tensor) -> Tensor: ...


@lru_cache(maxsize=1)
def signal_shares() -> Tensor:
    """(1000,) float64: the share of variance that is signal after each step of noise, cumulative product of 1 - beta.

    Source: Nichol & Dhariwal 2021 (improved DDPM), the cosine schedule.
    """
    level = torch.arange(TRAIN_STEPS + 1, dtype=torch.float64) / TRAIN_STEPS
    curve = torch.cos((level + 0.008) / 1.008 * math.pi / 2) ** 2
    betas = (1 - curve[1:] / curve[:-1]).clamp(max=0.999)
    return torch.cumprod(1 - betas, dim=0)


class TokenScheduler(DDPMScheduler):
    """DDPM with the variance that a head has learned, and a temperature.

    Args:
        num_steps: of the walk, evenly spaced among the 1000 trained ones, both ends included.
        temperature: factor of the noise that steps add.
        token_range: the predicted token is clipped to [-token_range, token_range]; None leaves it.
    """

    @register_to_config
    def __init__(self, num_steps: int = 100, temperature: float = 1.0, token_range: float | None = None) -> None:
        super().__init__(
            num_train_timesteps=TRAIN_STEPS,
            beta_schedule="squaredcos_cap_v2",
            variance_type="learned_range",
            clip_sample=token_range is not None,
            clip_sample_range=1.0 if token_range is None else token_range,
        )
        # In float64, because 1 - beta in float32 has lost most digits of a small beta.
        self.alphas_cumprod = signal_shares()
        self.one = torch.ones((), dtype=torch.float64)
        # Added up one by one, as improved-diffusion does: a half may be rounded otherwise.
        stride = (TRAIN_STEPS - 1) / (num_steps - 1)
        spaced = [round(time) for time in accumulate([0.0, *[stride] * (num_steps - 1)])]
        self.set_timesteps(timesteps=spaced[::-1])
        self._log_factor = 2 * math.log(temperature) if temperature > 0 else -math.inf

    def _get_variance(self, t, predicted_variance=None, variance_type=None):  # type: ignore[no-untyped-def]
        """The log variance, as diffusers gives it for a learned range, with the temperature's share."""
        return super()._get_variance(t, predicted_variance, variance_type) + self._log_factor


@torch.no_grad()
def sample_tokens(
    head: TokenHead,
    z: Tensor,
    z_uncond: Tensor | None = None,
    scale: Strength = 1.0,
    num_steps: int = 100,
    temperature: float = 1.0,
    generator: torch.Generator | list[torch.Generator] | None = None,
    counts: Tensor | None = None,
) -> Tensor:
    """Draw a token for each vector of the backbone.

    Guidance is inside: noise = noise_u + scale (noise_c - noise_u), both for the same noisy token; the variance is
    that of the conditional branch.

    Args:
        head: gives noise and variance.
        z: (B, n, D).
        z_uncond: like `z`, of no class; None, or a scale of 1, for no guidance.
        scale: s, 1 = off; a number, or (B,).
        num_steps: S, 2 .. 1000.
        temperature: factor of the noise of steps, at least 0. The first noise is as it is.
        generator: of all noise, one or one for each image.
        counts: (B,) how many of the n are wanted, the first ones; others are zeros. None for all. An image's draws
            do not depend on what other images want.

    Returns: (B, n, c), float32, or float64 where z is.

    Raises:
        ValueError: an argument out of its range, or shapes that do not fit together.

    Source: Li et al. 2024 (MAR), section 3.2; Nichol & Dhariwal 2021 for the walk.
    """
    _check(z, z_uncond, scale, num_steps, temperature, generator, counts)
    guided = z_uncond is not None and not is_off(scale)
    dtype, given = wide(z.dtype), z_uncond if guided else None
    if counts is None or bool((counts == z.shape[1]).all()):
        return _walk(head, z, given, scale, num_steps, temperature, generator, dtype)
    drawn = torch.zeros(*z.shape[:2], head.token_channels, dtype=dtype, device=z.device)
    for count in counts.unique().tolist():
        images = (counts == count).nonzero()[:, 0]
        own = [generator[i] for i in images.tolist()] if isinstance(generator, list) else generator
        if count:
            unguided = None if given is None else given[images, :count]
            strength = scale[images.to(scale.device)] if isinstance(scale, Tensor) else scale
            part = _walk(head, z[images, :count], unguided, strength, num_steps, temperature, own, dtype)
            drawn[images, :count] = part
    return drawn


def _walk(
    head: TokenHead,
    z: Tensor,
    z_uncond: Tensor | None,
    scale: Strength,
    num_steps: int,
    temperature: float,
    generator: torch.Generator | list[torch.Generator] | None,
    dtype: torch.dtype,
) -> Tensor:
    """`sample_tokens`, of as many tokens for each image."""
    batch, count, _ = z.shape
    # Channels on axis 1, where diffusers' schedulers split noise from variance.
    state = randn_tensor((batch, head.token_channels, count), generator=generator, device=z.device, dtype=dtype)
    scheduler = TokenScheduler(num_steps, temperature, head.token_range)
    predict: Predictor
    if z_uncond is None:
        predict = _predictor(head, z, dtype)
    else:
        both = _predictor(head, torch.cat([z, z_uncond]), dtype)

        def stacked(state: Tensor, step: Step) -> Tensor:
            output = both(torch.cat([state, state]), step)
            # Guidance leaves what the two agree on as it is.
            output[batch:, head.token_channels :] = output[:batch, head.token_channels :]
            return output

        predict = guided_jointly(stacked, scale)
    return sample(predict, scheduler, state, generator=generator, progress=False).transpose(1, 2).contiguous()


def _predictor(head: TokenHead, z: Tensor, dtype: torch.dtype) -> Predictor:
    """Noise and variance (B, 2 c, n) of a state (B, c, n), given z (B, n, D)."""
    flat = z.flatten(0, 1)

    def predict(state: Tensor, step: Step) -> Tensor:
        output = head(state.transpose(1, 2).flatten(0, 1), step.timestep[None].to(z.device), flat)
        return output.to(dtype).unflatten(0, z.shape[:2]).transpose(1, 2)

    return predict


def _check(
    z: Tensor,
    z_uncond: Tensor | None,
    scale: Strength,
    num_steps: int,
    temperature: float,
    generator: torch.Generator | list[torch.Generator] | None,
    counts: Tensor | None,
) -> None:
    if z.ndim != 3 or 0 in z.shape:
        raise ValueError(f"z must be (B, n, D), none of them 0, got {tuple(z.shape)}.")
    if z_uncond is not None and z_uncond.shape != z.shape:
        raise ValueError(f"z_uncond must be {tuple(z.shape)} as z, got {tuple(z_uncond.shape)}.")
    strengths = scale.tolist() if isinstance(scale, Tensor) else [scale]
    if isinstance(scale, Tensor) and scale.shape != (len(z),):
        raise ValueError(f"scale must be one number, or ({len(z)},), got {tuple(scale.shape)}.")
    if not all(math.isfinite(one) and one >= 0 for one in strengths):
        raise ValueError(f"scale must be finite and at least 0, got {scale}.")
    if z_uncond is None and not is_off(scale):
        raise ValueError(f"scale must be 1 without z_uncond, got {scale}.")
    if isinstance(num_steps, bool) or not isinstance(num_steps, int) or not 2 <= num_steps <= TRAIN_STEPS:
        raise ValueError(f"num_steps must be a whole number from 2 to {TRAIN_STEPS}, got {num_steps!r}.")
    if not (math.isfinite(temperature) and temperature >= 0):
        raise ValueError(f"temperature must be finite and at least 0, got {temperature}.")
    if isinstance(generator, list) and len(generator) != len(z):
        raise ValueError(f"generator must be one, or a list of {len(z)}, got {len(generator)}.")
    if counts is not None and (counts.shape != z.shape[:1] or bool(((counts < 0) | (counts > z.shape[1])).any())):
        raise ValueError(f"counts must be ({len(z)},) from 0 to {z.shape[1]}, got {counts.tolist()}.")
