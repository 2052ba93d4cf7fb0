"""The walk of prompts that share one intervention: guidance, contrast and energy around one network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gendiff.samplers.contrast import CausalContrast, contrasted
from gendiff.samplers.energy import EnergySteering, steered
from gendiff.samplers.guidance import guided
from gendiff.samplers.intervention import Intervention
from gendiff.samplers.loop import Predictor, State, Step, sample, steps_of
from gendiff.samplers.noise_levels import noise_level, noise_share
from gendiff.samplers.remembered import remembered
from gendiff.samplers.warped import warp_scheduler


@dataclass(frozen=True)
class Told:
    """What the network is told of each image, prompt embeddings (B, L, D).

    Attributes:
        factual: the prompt, E.
        edited: the prompt inside the window, E'; E itself where nothing is edited.
        counterfactual: the prompt under do(cause = other value), E-.
        empty: no prompt, for guidance.
    """

    factual: Tensor
    edited: Tensor
    counterfactual: Tensor
    empty: Tensor

    def rows(self, index: Tensor) -> Told:
        """The same of some images."""
        return Told(*(part[index] for part in (self.factual, self.edited, self.counterfactual, self.empty)))


@dataclass(frozen=True)
class Steering:
    """How the strengths of an intervention act.

    Attributes:
        guidance_scale: of classifier-free guidance, 1 = off.
        contrast: projection and mask of the causal contrast.
        energy: for rho; None without.
    """

    guidance_scale: float
    contrast: CausalContrast
    energy: EnergySteering | None = None


def walk(
    network: Callable[[State, Step, Tensor], Tensor],
    scheduler: Any,
    state: Tensor,
    told: Told,
    intervention: Intervention,
    steering: Steering,
    *,
    num_inference_steps: int,
    on_step_end: Callable[[Step, State], State | None] | None = None,
    progress: Any = False,
) -> tuple[Tensor, list[float]]:
    """From noise to images under one intervention.

    Args:
        network: `network(x, step, embeds)`, one row for each image.
        scheduler: of the model; a warp works on a copy.
        state: noise (B, C, S, S).
        told: conditions of the B images.

    Returns: images (B, C, S, S), and the noise share of each step.
    """
    if intervention.gate:
        scheduler = warp_scheduler(scheduler, intervention.warp)
    scheduler.set_timesteps(num_inference_steps, device=state.device)

    def share(step: Step) -> float:
        return noise_share(noise_level(scheduler, step))

    def prompted(state: State, step: Step) -> Tensor:
        inside = intervention.gate and intervention.acts_at(share(step))
        return network(state, step, told.edited if inside else told.factual)

    positive = remembered(prompted)
    empty = remembered(lambda state, step: network(state, step, told.empty))
    predict: Predictor = guided(positive, empty, steering.guidance_scale)
    predict = contrasted(
        predict,
        positive,
        lambda state, step: network(state, step, told.counterfactual),
        contrast=steering.contrast,
        intervention=intervention,
        share=share,
        unconditional=empty,
    )
    if steering.energy is not None:
        predict = steered(predict, steering.energy, intervention=intervention, scheduler=scheduler)
    end = sample(predict, scheduler, state, on_step_end=on_step_end, progress=progress)
    return end, [share(step) for step in steps_of(scheduler)]
