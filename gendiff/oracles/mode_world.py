"""ModeWorld: a text-to-image pipeline in miniature whose network is perfect and whose prompts have a wrong prior.

A sample is one of K points with a little noise, a prompt is their shares. "mode 2" is what a model believes that has
learned a shortcut: the mode that was asked for has a share of 0.25, a neighbour 0.45. The two prompts that a causal
contrast needs state the effect rightly and wrongly. Nothing is trained, so whatever guidance, contrast or a schedule do
to the share of the target is theirs alone. Choices are gendiff's; Yu & Lu 2025 (LINA) have no such world.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from gendiff.oracles.gaussian import Gaussian, GaussianMixture
from gendiff.oracles.mode_denoisers import ModeDenoiser
from gendiff.oracles.mode_world_pipeline import ModeWorldPipeline, encode
from gendiff.samplers.loop import Predictor, State, Step
from gendiff.samplers.noise_levels import is_flow, noise_level

__all__ = ["ModeWorld", "ModeWorldPipeline", "encode"]

TARGET_SHARE, SHORTCUT_SHARE, STATED_SHARE = 0.25, 0.45, 0.85
"""Of the mode asked for and of its neighbour under the wrong prior; of the mode that E+ or E- states."""


class ModeWorld:
    """K modes, the prompts about them, and the truth.

    Args:
        num_modes: K, at least 3.
        sample_shape: of one sample.
        spread: S of each mode.
        scale: modes are drawn from `scale * N(0, I)`.
        seed: of that draw.
        num_tokens: L of an embedding.

    Raises:
        ValueError: fewer than 3 modes.
    """

    def __init__(
        self,
        num_modes: int = 6,
        sample_shape: Sequence[int] = (2, 2, 2),
        spread: float = 0.15,
        scale: float = 1.5,
        seed: int = 0,
        num_tokens: int = 4,
    ):
        if num_modes < 3:
            raise ValueError(f"num_modes must be at least 3, got {num_modes}.")
        self.num_modes, self.num_tokens = num_modes, num_tokens
        self.denoiser = ModeDenoiser(list(sample_shape), num_modes, spread, scale, seed)
        self.prompts: dict[str, list[float]] = {"": [1 / num_modes] * num_modes}
        for mode in range(num_modes):
            other = self.shortcut(mode)
            self.prompts[self.prompt(mode)] = self._shares({mode: TARGET_SHARE, other: SHORTCUT_SHARE})
            self.prompts[self.plain(mode)] = self._shares({mode: STATED_SHARE})
            self.prompts[self.factual(mode)] = self._shares({mode: STATED_SHARE})
            self.prompts[self.counterfactual(mode)] = self._shares({other: STATED_SHARE})

    def shortcut(self, mode: int) -> int:
        """The neighbour that a prompt for `mode` gives more often."""
        return (mode + 1) % self.num_modes

    def prompt(self, mode: int) -> str:
        """The prompt with a wrong prior, E."""
        return f"mode {mode}"

    def plain(self, mode: int) -> str:
        """A prompt whose prior is right: nothing is to be repaired."""
        return f"plainly mode {mode}"

    def factual(self, mode: int) -> str:
        """E+, the effect stated rightly."""
        return f"mode {mode}, not mode {self.shortcut(mode)}"

    def counterfactual(self, mode: int) -> str:
        """E-, under do(mode = shortcut)."""
        return f"mode {self.shortcut(mode)}, not mode {mode}"

    def _shares(self, stated: Mapping[int, float]) -> list[float]:
        rest = (1 - sum(stated.values())) / (self.num_modes - len(stated))
        return [stated.get(mode, rest) for mode in range(self.num_modes)]

    def mixture(self, prompt: str) -> GaussianMixture:
        """The data under `prompt`, an independent and exact answer in float64."""
        shape = tuple(self.denoiser.config["sample_shape"])
        covariance = self.denoiser.config["spread"] ** 2 * torch.eye(self.denoiser.modes.shape[1], dtype=torch.float64)
        modes = self.denoiser.modes.double()
        return GaussianMixture([Gaussian(mode.view(shape), covariance) for mode in modes], self.prompts[prompt])

    def predictor(self, prompt: str, scheduler: Any) -> Predictor:
        """The network under `prompt`, for `sample`.

        Raises:
            ValueError: the scheduler is not one of flow matching; take `exact_predictor(world.mixture(prompt), ...)`.
        """
        if not is_flow(scheduler):
            raise ValueError(f"the network predicts flow velocity, {type(scheduler).__name__} expects another kind.")
        embeds = encode([prompt], self.prompts, self.num_tokens)

        def predict(x: State, step: Step) -> Tensor:
            time = torch.tensor(1000 * noise_level(scheduler, step)[1], dtype=torch.float64)
            return self.denoiser(x, time, embeds.to(x.device).expand(len(x), -1, -1)).sample

        return predict

    def nearest(self, samples: Tensor) -> Tensor:
        """The mode each sample (B, ...) lies closest to, (B,) integers."""
        return torch.cdist(samples.flatten(1).float(), self.denoiser.modes).argmin(1)

    def distance(self, samples: Tensor) -> Tensor:
        """Root mean square over dimensions of what lies between each sample and its mode, (B,); S on average."""
        return (samples.flatten(1) - self.denoiser.modes.to(samples)[self.nearest(samples)]).square().mean(1).sqrt()

    def rate(self, samples: Tensor, mode: int) -> float:
        """Share of samples at `mode`."""
        return (self.nearest(samples) == mode).double().mean().item()

    def pipeline(self, scheduler: FlowMatchEulerDiscreteScheduler | None = None) -> ModeWorldPipeline:
        """As a diffusers pipeline that knows nothing of contrast."""
        scheduler = scheduler if scheduler is not None else FlowMatchEulerDiscreteScheduler()
        pipe = ModeWorldPipeline(self.denoiser, scheduler, self.prompts, self.num_tokens)
        pipe.set_progress_bar_config(disable=True)
        return pipe
