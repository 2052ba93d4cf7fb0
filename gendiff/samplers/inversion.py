"""From image to noise and back: schedulers whose walk can be undone, for abduction.

A DDIM walk from noise to image is deterministic, so the noise behind a given image can be asked for. Three schemes
answer, and `SCHEMES` pairs the scheduler that decodes with the one that inverts:

==============  =====================  ============================  ===============================================
scheme          state                  predictions per step          undoes the decoding
==============  =====================  ============================  ===============================================
`ddim`          x                      1                             approximately: reads the network a step too early
`edict`         the pair (x, y)        2, in both directions         exactly, for any network
`fixed_point`   the pair (x, guess)    m to invert, 1 to decode      in the limit, where a step is a contraction
==============  =====================  ============================  ===============================================

On angles a_t = arccos sqrt(alpha_bar_t), a decode step turns the state by d = a_t - a_prev: it is
x' = cos(d) x - sin(d) v with v = cos(a_t) eps - sin(a_t) x_0. No scheme computes this anew: timesteps and
coefficients are read off diffusers' `DDIMScheduler`, so the step that is coupled or undone here is its very own.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddim_inverse import DDIMInverseScheduler
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils.outputs import BaseOutput
from torch import Tensor

Pair = tuple[Tensor, Tensor]
"""Two states of one shape (B, C, H, W). Where one is asked for, a stacked tensor (2, B, C, H, W) will do."""


@dataclass
class PairOutput(BaseOutput):
    """Result of a step: `prev_sample` is the pair the next step starts from."""

    prev_sample: Pair


@dataclass(frozen=True)
class Move:
    """A DDIM decode step as the map `cleaner = keep * state + read * seen + gain * output`.

    `seen` is what the network read to give `output`. Plain DDIM has seen = state; schemes that undo the step exactly
    let the network read something they still hold on the way back, and then the map is affine in `state`.
    """

    keep: float
    read: float
    gain: float

    def decode(self, state: Tensor, seen: Tensor, output: Tensor) -> Tensor:
        return self.keep * state + self.read * seen + self.gain * output

    def invert(self, state: Tensor, seen: Tensor, output: Tensor) -> Tensor:
        return (state - self.read * seen - self.gain * output) / self.keep


class EDICTScheduler(SchedulerMixin, ConfigMixin):
    """Decode a pair of coupled states, noise to image (EDICT; Wallace et al. 2022, arXiv 2211.12446).

    One step is two half-steps, so `timesteps` holds each of DDIM's timesteps twice:

        x' = move(x), with the network reading y;   y' = move(y), with the network reading x'
        x <- p x' + (1 - p) y';   y <- p y' + (1 - p) x

    Each half moves by what the network says about the *other* half, which is still at hand when
    `EDICTInverseScheduler` comes back, so the two undo each other whatever the network is. Start from (noise, noise)
    or from an inverted pair; the image is x. Keep y where the walk is to be undone: x alone does not determine it.

    Args:
        edict_p: weight p of the mixing that keeps the halves together, in (0, 1]; 1 does not mix. Undoing it
            enlarges rounding errors by up to p**(-2 * num_inference_steps).

    The others are `DDIMScheduler`'s, so that `EDICTScheduler.from_config(ddim.config)` works.
    """

    order = 1
    init_noise_sigma = 1.0

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: list[float] | None = None,
        clip_sample: bool = False,
        set_alpha_to_one: bool = True,
        steps_offset: int = 0,
        prediction_type: str = "epsilon",
        thresholding: bool = False,
        timestep_spacing: str = "leading",
        rescale_betas_zero_snr: bool = False,
        edict_p: float = 0.93,
    ):
        _check_mixing(edict_p)
        self._ddim = _ddim(self.config)
        self.alphas_cumprod = self._ddim.alphas_cumprod
        self.timesteps: Tensor | None = None
        self._step_index = 0

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Lay out 2 * num_inference_steps half-steps, noisiest first, and go back to the first of them."""
        timesteps, self._moves = _walk(self._ddim, num_inference_steps)
        self.num_inference_steps = num_inference_steps
        self.timesteps = timesteps.repeat_interleave(2).to(device)
        self._step_index = 0

    def scale_model_input(self, sample: Pair, timestep: Tensor | int | None = None) -> Tensor:
        """The half of the pair the network has to read now, (B, C, H, W)."""
        x, y = sample
        return x if self._step_index % 2 else y

    def step(
        self, model_output: Tensor, timestep: Tensor | int, sample: Pair, return_dict: bool = True
    ) -> PairOutput | tuple[Pair]:
        """Do the next half-step.

        Args:
            model_output: prediction for `scale_model_input(sample, timestep)`, (B, C, H, W).
            timestep: the timestep whose turn it is.
            sample: the pair (x, y).
            return_dict: False returns the one-element tuple (pair,).

        Raises:
            ValueError: the timestep is out of turn, or the walk has ended.
        """
        move = _next_move(self, timestep)
        x, y = sample
        second = self._step_index % 2
        self._step_index += 1
        if not second:
            pair = (move.decode(x, y, model_output), y)
        else:
            pair = _mix(x, move.decode(y, x, model_output), self.config["edict_p"])
        return PairOutput(prev_sample=pair) if return_dict else (pair,)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Diffuse images (B, C, H, W) to `timesteps` (B,), as `DDIMScheduler.add_noise`."""
        return self._ddim.add_noise(original_samples, noise, timesteps)  # type: ignore[arg-type]


class EDICTInverseScheduler(SchedulerMixin, ConfigMixin):
    """Invert an image to the pair of noises `EDICTScheduler` decodes to it: its half-steps undone in reverse order.

    Start from (image, image). The arguments are `EDICTScheduler`'s and must have the same values there.
    """

    order = 1
    init_noise_sigma = 1.0

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: list[float] | None = None,
        clip_sample: bool = False,
        set_alpha_to_one: bool = True,
        steps_offset: int = 0,
        prediction_type: str = "epsilon",
        thresholding: bool = False,
        timestep_spacing: str = "leading",
        rescale_betas_zero_snr: bool = False,
        edict_p: float = 0.93,
    ):
        _check_mixing(edict_p)
        self._ddim = _ddim(self.config)
        self.alphas_cumprod = self._ddim.alphas_cumprod
        self.timesteps: Tensor | None = None
        self._step_index = 0

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Lay out 2 * num_inference_steps half-steps, cleanest first, and go back to the first of them."""
        timesteps, self._moves = _walk(self._ddim, num_inference_steps)
        self.num_inference_steps = num_inference_steps
        self.timesteps = timesteps.flip(0).repeat_interleave(2).to(device)
        self._step_index = 0

    def scale_model_input(self, sample: Pair, timestep: Tensor | int | None = None) -> Tensor:
        """What the network read in the half-step to undo now, (B, C, H, W)."""
        x, y = sample
        return y if self._step_index % 2 else _unmix(x, y, self.config["edict_p"])[0]

    def step(
        self, model_output: Tensor, timestep: Tensor | int, sample: Pair, return_dict: bool = True
    ) -> PairOutput | tuple[Pair]:
        """Undo a half-step; arguments, result and errors as in `EDICTScheduler.step`."""
        move = _next_move(self, timestep)
        x, y = sample
        second = self._step_index % 2
        self._step_index += 1
        if not second:
            x, y = _unmix(x, y, self.config["edict_p"])
            pair = (x, move.invert(y, x, model_output))
        else:
            pair = (move.invert(x, y, model_output), y)
        return PairOutput(prev_sample=pair) if return_dict else (pair,)


class FixedPointInverseScheduler(SchedulerMixin, ConfigMixin):
    """Invert DDIM by solving each decode step x = move(z), with the network reading z, for the noisier state z.

    A step repeats guess <- move^-1(x), with the network reading the guess, `num_iterations` times from guess = x
    (cf. Pan et al. 2023, arXiv 2309.04907), and `timesteps` holds each timestep as often. Its fixed point is the
    exact inverse; it is reached where the network changes slowly over a step, so with many small steps.

    Start from (image, image); at the end both halves are the noise, for `DDIMScheduler` to decode.

    Args:
        num_iterations: evaluations per step, at least 1. With 1 and epsilon this is DDIM inversion.

    The others are `DDIMScheduler`'s.
    """

    order = 1
    init_noise_sigma = 1.0

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: list[float] | None = None,
        clip_sample: bool = False,
        set_alpha_to_one: bool = True,
        steps_offset: int = 0,
        prediction_type: str = "epsilon",
        thresholding: bool = False,
        timestep_spacing: str = "leading",
        rescale_betas_zero_snr: bool = False,
        num_iterations: int = 5,
    ):
        if num_iterations < 1:
            raise ValueError(f"num_iterations must be at least 1, got {num_iterations}.")
        self._ddim = _ddim(self.config)
        self.alphas_cumprod = self._ddim.alphas_cumprod
        self.timesteps: Tensor | None = None
        self._step_index = 0

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Lay out num_iterations * num_inference_steps evaluations, cleanest first, and go back to the first."""
        timesteps, self._moves = _walk(self._ddim, num_inference_steps)
        self.num_inference_steps = num_inference_steps
        self.timesteps = timesteps.flip(0).repeat_interleave(self.config["num_iterations"]).to(device)
        self._step_index = 0

    def scale_model_input(self, sample: Pair, timestep: Tensor | int | None = None) -> Tensor:
        """The guess, (B, C, H, W)."""
        return sample[1]

    def step(
        self, model_output: Tensor, timestep: Tensor | int, sample: Pair, return_dict: bool = True
    ) -> PairOutput | tuple[Pair]:
        """Improve the guess; the last iteration of a step accepts it. Arguments as in `EDICTScheduler.step`."""
        move = _next_move(self, timestep)
        x, guess = sample
        guess = move.invert(x, guess, model_output)
        self._step_index += 1
        accepted = self._step_index % self.config["num_iterations"] == 0
        pair = (guess, guess) if accepted else (x, guess)
        return PairOutput(prev_sample=pair) if return_dict else (pair,)


SCHEMES: dict[str, tuple[Any, Any]] = {
    "edict": (EDICTScheduler, EDICTInverseScheduler),
    "ddim": (DDIMScheduler, DDIMInverseScheduler),
    "fixed_point": (DDIMScheduler, FixedPointInverseScheduler),
}
"""Scheme -> (class that decodes noise to image, class that inverts image to noise)."""


def forward_of(ddim: DDIMScheduler, scheme: str) -> Any:
    """The scheduler that decodes under `scheme`, on the grid of `ddim`, before its `set_timesteps`.

    Raises:
        ValueError: the scheme is unknown, or the configuration of `ddim` cannot be inverted.
    """
    return _of(ddim, scheme, 0)


def inverse_of(ddim: DDIMScheduler, scheme: str) -> Any:
    """The scheduler that inverts under `scheme`, on the grid of `ddim`; errors as in `forward_of`."""
    return _of(ddim, scheme, 1)


def _of(ddim: DDIMScheduler, scheme: str, direction: int) -> Any:
    if scheme not in SCHEMES:
        raise ValueError(f"inversion scheme must be one of {', '.join(SCHEMES)}, got {scheme!r}.")
    _ddim(ddim.config)  # diffusers' own pair would clip without a word
    scheduler = SCHEMES[scheme][direction]
    return scheduler(**_accepted(scheduler, ddim.config))


def _accepted(scheduler: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    # from_config would do the same, but logs a warning for every key the other class does not know.
    names = inspect.signature(scheduler.__init__).parameters
    return {name: value for name, value in config.items() if name in names}


def _ddim(config: Mapping[str, Any]) -> DDIMScheduler:
    """The scheduler whose table and grid all of them share, if `config` allows an inverse at all."""
    for name in ("clip_sample", "thresholding"):
        if config[name]:
            raise ValueError(f"{name} must be False: a step that clips its prediction of x_0 cannot be inverted.")
    if config["timestep_spacing"] not in ("leading", "trailing"):
        raise ValueError(
            f"timestep_spacing must be 'leading' or 'trailing' for inversion, got {config['timestep_spacing']!r}."
        )
    return DDIMScheduler(**_accepted(DDIMScheduler, config))


def _check_mixing(edict_p: float) -> None:
    if not 0 < edict_p <= 1:
        raise ValueError(f"edict_p must lie in (0, 1], got {edict_p}.")


def _walk(ddim: DDIMScheduler, num_inference_steps: int) -> tuple[Tensor, dict[int, Move]]:
    """DDIM's timesteps (K,), noisiest first, and the decode step that starts at each."""
    total = ddim.config["num_train_timesteps"]
    if not 1 <= num_inference_steps <= total:
        raise ValueError(
            f"num_inference_steps must lie in 1..{total} (num_train_timesteps), got {num_inference_steps}."
        )
    ddim.set_timesteps(num_inference_steps)
    noisiest = int(ddim.timesteps[0])
    if noisiest >= total:
        raise ValueError(
            f"steps_offset={ddim.config['steps_offset']} puts the first of {num_inference_steps} steps at timestep "
            f"{noisiest}, beyond the last one, {total - 1}. Use fewer steps or a smaller offset."
        )
    return ddim.timesteps, {timestep: _move(ddim, timestep) for timestep in ddim.timesteps.tolist()}


def _move(ddim: DDIMScheduler, timestep: int) -> Move:
    # Without clipping, DDIM's step is linear in state and output: two probes tell the slopes it uses, in float64.
    zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    keep = float(ddim.step(zero, timestep, one, return_dict=False)[0])
    gain = float(ddim.step(one, timestep, zero, return_dict=False)[0])
    read = 0.0
    if ddim.config["prediction_type"] == "sample":
        # x_0 is turned into v = (cos(a) seen - x_0) / sin(a) where it was read. Left as it is, the last step would be
        # x' = x_0, which forgets x. Epsilon is left as it is: turned into v it would be divided by cos(a), and EDICT,
        # which reads its two halves a half-step apart, would multiply that factor up twice in a step.
        read = -gain * math.sqrt(ddim.alphas_cumprod[timestep])
        keep -= read
    if not 1e-8 < keep < 1e8:
        raise ValueError(
            f"the step from timestep {timestep} cannot be inverted with {ddim.config['prediction_type']}: it takes "
            f"the state times {keep:g}. Use v_prediction, more steps, or betas that stop short of pure noise."
        )
    return Move(keep, read, gain)


def _next_move(scheduler: Any, timestep: Tensor | int) -> Move:
    if scheduler.timesteps is None:
        raise ValueError(f"{type(scheduler).__name__} has no timesteps; call set_timesteps first.")
    index, count = scheduler._step_index, len(scheduler.timesteps)
    if index >= count:
        raise ValueError(f"all {count} steps of {type(scheduler).__name__} are done; call set_timesteps to start anew.")
    if int(timestep) != int(scheduler.timesteps[index]):
        raise ValueError(
            f"step {index + 1} of {count} is at timestep {int(scheduler.timesteps[index])}, got {int(timestep)}; "
            "walk the timesteps in order, and call set_timesteps to start anew."
        )
    return scheduler._moves[int(timestep)]


def _mix(x: Tensor, y: Tensor, p: float) -> Pair:
    x = p * x + (1 - p) * y
    return x, p * y + (1 - p) * x


def _unmix(x: Tensor, y: Tensor, p: float) -> Pair:
    y = (y - (1 - p) * x) / p
    return (x - (1 - p) * y) / p, y
