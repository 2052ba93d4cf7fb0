"""LinearWorld, where the best intervention of every prompt is planted: do search and predictor find it?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gendiff.models.lina_predictor import LINAPredictor
from gendiff.oracles.linear_world import LinearWorld
from gendiff.samplers.action_box import ActionBox
from gendiff.samplers.intervention import Intervention
from gendiff.training.lina_inputs import PredictorInputs, labels_of
from gendiff.training.lina_regress import train_predictor
from gendiff.training.lina_search import search_interventions

BOX = ActionBox(("effect",), lam_max=0.0, kappa_max=1.0, stop_range=0.0)
"""One factor of the prompt and nothing else."""
SEARCHED, TRAINED, HELD_OUT, STOPPING = 20, 64, 32, 16
"""Prompts of the search that is judged; prompts that need an intervention, of training, of the test, and of early
stopping."""
NEAR, R_SQUARED, SHUT = 0.05, 0.9, 0.95
WIDTH = 0.4
"""How far from the planted strength a score falls to exp(-1/2)."""


def planted_cells(seed: int = 0) -> list[dict[str, Any]]:
    """Cells of the search and of the predictor, each with its bar."""
    world = LinearWorld(seed=seed)
    generator = torch.Generator().manual_seed(seed)
    embeds = world.prompts(SEARCHED, generator)
    found = search_interventions(_score(world, embeds), BOX, SEARCHED, "cem", c_reg=0.0)
    alpha = torch.tensor([winner.intervention.alpha.get("effect", 0.0) for winner in found.winners])
    worst = (alpha - world.best_alpha(embeds)).abs().max().item()
    words = f"search: largest error of a planted strength, {SEARCHED} prompts"
    cells = [{"metric": "planted", "words": words, "value": worst, "n": SEARCHED, "bar": NEAR, "met": worst < NEAR}]

    trained, new, stopping = (_prompts(world, count, generator) for count in (TRAINED, HELD_OUT, STOPPING))
    found = search_interventions(_score(world, trained), BOX, len(trained), "cem", c_reg=0.0)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        predictor = LINAPredictor(world.embed_dim, BOX.to_dict(), base_model="LinearWorld")
    labels, score = labels_of(found, len(trained)), _expected(world, stopping)

    def held_out(predictor: LINAPredictor) -> float:
        said = predictor(*_parts(_inputs(stopping)))
        return score(torch.where(said.gate, said.action[:, 0], 0) * BOX.alpha_max).mean().item()

    train_predictor(predictor, _inputs(trained), labels, held_out=held_out, seed=seed)
    inputs, truth = _inputs(new), world.best_alpha(new)
    with torch.no_grad():
        said = predictor(*_parts(inputs))
    needed = truth != 0
    wanted = truth[needed]
    apart = (BOX.alpha_max * said.action[needed, 0] - wanted).square().sum()
    r_squared = 1 - (apart / (wanted - wanted.mean()).square().sum()).item()
    shut = (~said.gate[~needed]).double().mean().item()
    words = f"predictor: R^2 of the strength on {HELD_OUT} held-out prompts, trained on {TRAINED}"
    cells.append({"metric": "r_squared", "words": words, "value": r_squared, "n": HELD_OUT, "bar": R_SQUARED})
    words = "predictor: gate shut on held-out prompts that need nothing"
    cells.append({"metric": "shut", "words": words, "value": shut, "n": int((~needed).sum()), "bar": SHUT})
    return [{**cell, "met": cell["value"] >= cell["bar"]} if "met" not in cell else cell for cell in cells]


def _prompts(world: LinearWorld, needing: int, generator: torch.Generator) -> Tensor:
    """Prompts until `needing` of them need an intervention, on the sphere that the predictor's layer norm maps to.

    Off the sphere the planted strength is not a function of what the predictor reads.
    """
    found: list[Tensor] = []
    left = needing
    while left:
        embeds = world.prompts(1, generator)
        mean = embeds.mean(1, keepdim=True)
        embeds = embeds - mean + torch.nn.functional.layer_norm(mean, mean.shape[-1:])
        left -= int(world.best_alpha(embeds).item() != 0)
        found.append(embeds)
    return torch.cat(found)


def _inputs(embeds: Tensor) -> PredictorInputs:
    return PredictorInputs(embeds, torch.ones(embeds.shape[:2], dtype=torch.bool), torch.zeros(len(embeds), 16))


def _parts(inputs: PredictorInputs) -> tuple[Tensor, Tensor, Tensor]:
    return inputs.embeds, inputs.mask, inputs.graph


def _expected(world: LinearWorld, embeds: Tensor) -> Callable[[Tensor], Tensor]:
    """Strengths (P,) -> the world's scores brought into [0, 1]: 1 at the planted strength, 0.04 a unit from it."""
    best = world.best_alpha(embeds)
    top = world.expected_score(embeds, best)
    unit = (top - world.expected_score(embeds, best + 1)).clamp(min=1e-9)

    def score(alpha: Tensor) -> Tensor:
        apart = (top - world.expected_score(embeds, alpha)) / unit
        return (-apart / (2 * WIDTH**2)).exp().clamp(max=1.0)

    return score


def _score(world: LinearWorld, embeds: Tensor) -> Callable[..., Tensor]:
    expected = _expected(world, embeds)

    def score(intervention: Intervention, prompts: Sequence[int], /, *, seeds: Sequence[int]) -> Tensor:
        alpha = torch.full((len(embeds),), intervention.alpha.get("effect", 0.0))
        return expected(alpha)[list(prompts), None].expand(-1, len(seeds))

    return score
