"""DDIM on uneven steps. Diffusers' own takes every step to end T / N timesteps further on, wherever the next begins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_ddim import DDIMScheduler, DDIMSchedulerOutput
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from .sigma_tables import raise_collisions, repeats, resampled, timesteps_at, training_sigmas, whole_timesteps
from .warps import WarpSpec


class WarpedDDIMScheduler(DDIMScheduler, SchedulerMixin, ConfigMixin):
    """DDIM whose steps are spaced by a warp that is part of its config, so that it is saved and loaded.

    With the identity it is diffusers' DDIM, bit for bit. It is read from another scheduler's config by
    `WarpedDDIMScheduler.from_config(scheduler.config, warp={"name": "moebius", "parameter": 2.0})`.

    Args:
        warp: a `WarpSpec`, or a dict of its attributes, which is how the config keeps it; None for the identity.
        others: as `diffusers.DDIMScheduler`.

    Raises:
        ValueError: not a warp, or `set_timesteps` finds no N distinct timesteps for it.

    Source: Song et al. 2021 (DDIM), equations 12 and 16, which hold for any subsequence of timesteps.
    """

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: list[float] | None = None,
        clip_sample: bool = True,
        set_alpha_to_one: bool = True,
        steps_offset: int = 0,
        prediction_type: str = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        clip_sample_range: float = 1.0,
        sample_max_value: float = 1.0,
        timestep_spacing: str = "leading",
        rescale_betas_zero_snr: bool = False,
        warp: Any = None,
    ) -> None:
        own = DDIMScheduler.__init__.__wrapped__  # type: ignore[attr-defined]  # without writing its config over ours
        own(
            self,
            num_train_timesteps=num_train_timesteps,
            beta_start=beta_start,
            beta_end=beta_end,
            beta_schedule=beta_schedule,
            trained_betas=trained_betas,
            clip_sample=clip_sample,
            set_alpha_to_one=set_alpha_to_one,
            steps_offset=steps_offset,
            prediction_type=prediction_type,
            thresholding=thresholding,
            dynamic_thresholding_ratio=dynamic_thresholding_ratio,
            clip_sample_range=clip_sample_range,
            sample_max_value=sample_max_value,
            timestep_spacing=timestep_spacing,
            rescale_betas_zero_snr=rescale_betas_zero_snr,
        )
        self.warp = _read_warp(warp)
        self.register_to_config(warp=None if warp is None else asdict(self.warp))
        self._previous: dict[int, int] = {}

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Place N steps.

        Args:
            num_inference_steps: N.
            device: of `timesteps`.

        Raises:
            ValueError: N is above the number of training timesteps, or steps of the warp collide.
        """
        super().set_timesteps(num_inference_steps, device)  # type: ignore[arg-type]
        if self.warp.is_identity:
            return
        table = training_sigmas(self)
        plain = self.timesteps.cpu().long()
        final = torch.as_tensor(self.final_alpha_cumprod).double().reshape(1)
        nodes = torch.cat([table[plain], ((1 - final) / final).sqrt()])

        def attempt(warp: WarpSpec) -> Tensor:
            return whole_timesteps(resampled(nodes, warp, log=True)[:-1], table)[0]

        warped = attempt(self.warp)
        if int(warped[-1]) < 0:
            rounded = timesteps_at(resampled(nodes, self.warp, log=True)[:-1], table).round()
            raise_collisions(self.warp, len(plain), repeats(rounded), lambda tried: int(attempt(tried)[-1]) >= 0)
        self._previous = dict(zip(warped.tolist(), [*warped.tolist()[1:], -1], strict=True))
        self.timesteps = warped.to(self.timesteps)

    def step(  # type: ignore[override]
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
        generator: torch.Generator | list[torch.Generator] | None = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> DDIMSchedulerOutput | tuple[Tensor, Tensor]:
        """One step to the next timestep of the table.

        Args:
            model_output: what the network says, (B, ...).
            timestep: one of `timesteps`.
            sample: the state, (B, ...).
            eta: 0 = deterministic, 1 = with all of DDPM's noise.
            use_clipped_model_output: read the noise off the clipped clean sample.
            generator: source of the noise.
            variance_noise: the noise itself, instead of `generator`.
            return_dict: False for a tuple.

        Returns: the next state and the clean sample foreseen.

        Raises:
            ValueError: no `set_timesteps` yet, a timestep that is not in the table, or both `generator` and
                `variance_noise`.
        """
        if self.warp.is_identity:
            plain = {"use_clipped_model_output": use_clipped_model_output, "variance_noise": variance_noise}
            return super().step(
                model_output,
                timestep,  # type: ignore[arg-type]
                sample,
                eta=eta,
                generator=generator,  # type: ignore[arg-type]
                return_dict=return_dict,
                **plain,  # type: ignore[arg-type]
            )
        if self.num_inference_steps is None:
            raise ValueError("num_inference_steps is None; call set_timesteps before step.")
        if variance_noise is not None and generator is not None:
            raise ValueError("generator and variance_noise were both passed; choose one.")
        now = int(timestep)
        if now not in self._previous:
            raise ValueError(f"timestep must be one of the {len(self._previous)} of the schedule, got {now}.")
        then = self._previous[now]
        signal = self.alphas_cumprod[now]
        signal_then = self.alphas_cumprod[then] if then >= 0 else self.final_alpha_cumprod
        clean, noise = self._read(model_output, sample, signal, use_clipped_model_output)
        spread = eta * self._get_variance(now, then) ** 0.5
        reached = signal_then**0.5 * clean + (1 - signal_then - spread**2) ** 0.5 * noise
        if eta > 0:
            if variance_noise is None:
                variance_noise = randn_tensor(
                    model_output.shape, generator=generator, device=model_output.device, dtype=model_output.dtype
                )
            reached = reached + spread * variance_noise
        return DDIMSchedulerOutput(prev_sample=reached, pred_original_sample=clean) if return_dict else (reached, clean)

    def _read(self, output: Tensor, sample: Tensor, signal: Tensor, from_clipped: bool) -> tuple[Tensor, Tensor]:
        """Clean sample, clipped as the config says, and noise."""
        config = self.config
        alpha, sigma = signal**0.5, (1 - signal) ** 0.5
        if config["prediction_type"] == "epsilon":
            clean, noise = (sample - sigma * output) / alpha, output
        elif config["prediction_type"] == "sample":
            clean, noise = output, (sample - alpha * output) / sigma
        elif config["prediction_type"] == "v_prediction":
            clean, noise = alpha * sample - sigma * output, alpha * output + sigma * sample
        else:
            raise ValueError(
                f"prediction_type must be epsilon, sample or v_prediction, got {config['prediction_type']!r}."
            )
        if config["thresholding"]:
            clean = self._threshold_sample(clean)
        elif config["clip_sample"]:
            clean = clean.clamp(-config["clip_sample_range"], config["clip_sample_range"])
        return clean, (sample - alpha * clean) / sigma if from_clipped else noise


def _read_warp(warp: Any) -> WarpSpec:
    if isinstance(warp, WarpSpec):
        return warp
    if warp is None:
        return WarpSpec()
    known = tuple(WarpSpec.__dataclass_fields__)
    if not isinstance(warp, Mapping) or any(name not in known for name in warp):
        raise ValueError(f"warp must be a WarpSpec or a dict with keys among {', '.join(known)}, got {warp!r}.")
    return WarpSpec(**warp)
