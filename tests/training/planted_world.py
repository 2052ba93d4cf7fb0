"""A linear world in which the right strength alpha*(E) of a prompt is known.

A prompt's embedding is read by mu(E) = mean of E over its tokens, an image is mu(E') + 0.02 noise of its seed, and the
verifier compares it with mu of E edited by alpha*. One coordinate of the mean says whether a prompt needs nothing; the
others say linearly how much.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from gendiff.models.lina_predictor import LINAPrediction
from gendiff.pipelines.factor_directions import FactorDirections
from gendiff.samplers.action_box import ActionBox
from gendiff.samplers.intervention import Intervention
from gendiff.training.lina_inputs import PredictorInputs

DIM, LENGTH, NOISE, WIDTH = 16, 4, 0.02, 0.4
BOX = ActionBox(("effect",), lam_max=0.0, kappa_max=1.0, stop_range=0.0)


class PlantedWorld:
    """Attributes: inputs of P prompts, `needs` bool (P,), `best` (P,), which is 0 where nothing is needed."""

    def __init__(self, needs: Sequence[bool], seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        count = len(needs)
        self.needs = torch.tensor(needs)
        mean = torch.randn(count, DIM, generator=generator)
        mean[:, 0] = torch.where(self.needs, 1.5, -1.5) + 0.3 * torch.randn(count, generator=generator)
        # On the sphere that the predictor's layer norm maps to, or alpha* would not be a function of what it reads.
        mean = torch.nn.functional.layer_norm(mean, (DIM,))
        tokens = torch.randn(count, LENGTH, DIM, generator=generator)
        embeds = mean[:, None] + tokens - tokens.mean(1, keepdim=True)
        self.inputs = PredictorInputs(embeds, torch.ones(count, LENGTH, dtype=torch.bool), torch.zeros(count, 16))
        strength = (0.3 * (mean[:, 1] - mean[:, 2]) + 0.2 * mean[:, 3] + 0.05).clamp(-0.9, 0.9)
        self.best = torch.where(self.needs, strength, torch.zeros(()))
        direction = torch.randn(DIM, generator=torch.Generator().manual_seed(7))
        self.directions = FactorDirections(
            {"effect": direction / direction.square().mean().sqrt()}, torch.zeros(0, 0), skip=()
        )
        self.target = self.mean({"effect": self.best}, list(range(count)))
        # How far an edit of strength 1 moves an image.
        self.unit = (self.mean({"effect": self.best + 1}, list(range(count))) - self.target).norm(dim=1)
        self.calls: list[tuple[Intervention, tuple[int, ...], tuple[int, ...]]] = []

    def mean(self, alpha: dict[str, float | Tensor], prompts: list[int]) -> Tensor:
        picked = self.inputs.rows(prompts)
        return self.directions.edit(picked.embeds, picked.mask, alpha).mean(1)

    def score(self, intervention: Intervention, prompts: Sequence[int], *, seeds: Sequence[int]) -> Tensor:
        """Scores (P, S) of a search."""
        self.calls.append((intervention, tuple(prompts), tuple(seeds)))
        alpha = dict(intervention.alpha) if intervention.gate else {}
        return self._judged(self.mean(alpha, list(prompts)), list(prompts), tuple(seeds))

    def reached(self, said: LINAPrediction, seeds: Sequence[int]) -> float:
        """Mean score of all prompts under what a predictor says of them, all at once."""
        alpha = torch.where(said.gate, said.action[:, 0], torch.zeros(()))
        rows = list(range(len(self.needs)))
        return self._judged(self.mean({"effect": alpha}, rows), rows, tuple(seeds)).mean().item()

    def _judged(self, mean: Tensor, rows: list[int], seeds: tuple[int, ...]) -> Tensor:
        noise = _noise(seeds)
        apart = (mean[:, None] + NOISE * noise - self.target[rows, None]).square().sum(-1)
        apart = apart - NOISE**2 * noise.square().sum(-1)
        return torch.exp(-0.5 * apart / (WIDTH * self.unit[rows, None]) ** 2).clamp(max=1.0)


@cache
def _noise(seeds: tuple[int, ...]) -> Tensor:
    return torch.stack([torch.randn(DIM, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
