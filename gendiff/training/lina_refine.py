"""Stage D of LINA's training, optional: the predictor goes on learning on fresh prompts by trying near what it says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from gendiff.models.lina_predictor import LINAPredictor
from gendiff.samplers.action_box import ActionBox

from .lina_candidates import Evaluations, Score
from .lina_inputs import PredictorInputs


@dataclass(frozen=True)
class RefinementReport:
    """How a refinement went.

    Attributes:
        gains: mean gain in J over the identity of what was tried, by round.
        opened: share of the prompts whose gate was open after each round.
    """

    gains: tuple[float, ...]
    opened: tuple[float, ...]


def refine_predictor(
    predictor: LINAPredictor,
    inputs: PredictorInputs,
    score: Score,
    box: ActionBox,
    *,
    rounds: int = 20,
    sigma: float = 0.15,
    learning_rate: float = 3e-4,
    gate_weight: float = 1.0,
    c_nfe: float = 0.02,
    c_reg: float = 0.01,
    seed: int = 0,
) -> RefinementReport:
    """Contextual bandit: for each prompt one candidate and one run of the identity, both on one seed.

    The candidate is drawn from a normal distribution around y, and the policy gradient of its gain in J moves y. The
    gate moves towards open by what the candidate gained, towards shut by what it lost: the gradient of its expected
    gain. The predictor changes in place and is left in evaluation mode.

    Args:
        predictor: after `train_predictor`.
        inputs: of P fresh prompts, whose indices are 0 to P - 1 for `score`.
        score: see `Score`; called with one new seed in every round.
        box: the predictor's.
        rounds: runs of all prompts.
        sigma: standard deviation of the candidate in y, above 0.
        learning_rate: of AdamW.
        gate_weight: of the gate's part of the loss.
        c_nfe, c_reg: prices, as in the search.
        seed: of the draws, and first of the seeds given to `score`.

    Raises:
        ValueError: an argument outside its range, a box of other factors, or scores that are not scores.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}.")
    if not sigma > 0:
        raise ValueError(f"sigma must be above 0, got {sigma}.")
    if list(box.factors) != predictor.factors:
        raise ValueError(f"box must have the predictor's factors {predictor.factors}, got {list(box.factors)}.")
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(predictor.parameters(), lr=learning_rate, weight_decay=0.0)
    inputs = inputs.to(predictor.device)
    # A coordinate without room in the box gains nothing, so its gradient would be noise alone.
    active = torch.zeros(len(box.names))
    active[list(box.active)] = 1
    gains, opened = [], []
    for turn in range(rounds):
        predictor.eval()
        with torch.no_grad():
            said, _ = inputs.said_by(predictor)
        noise = torch.randn(said.shape, generator=generator) * active
        drawn = (said.float().cpu() + sigma * noise).clamp(-1, 1)
        gain = _gains(score, box, drawn.tolist(), seed + turn, c_nfe, c_reg)
        predictor.train()
        action, logits = inputs.said_by(predictor)
        worth = gain.to(action.device, action.dtype)
        # The mean is taken off as a baseline, and the scale, so that the learning rate fits any verifier.
        advantage = (worth - worth.mean()) / worth.std(correction=0).clamp(min=1e-3)
        apart = ((action - drawn.to(action)) * active.to(action)).square().sum(1)
        gate = worth / worth.abs().mean().clamp(min=1e-3) * nn.functional.sigmoid(logits)
        loss = (advantage * apart).mean() / (2 * sigma) - gate_weight * gate.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        gains.append(gain.mean().item())
        opened.append((logits > 0).float().mean().item())
    predictor.eval()
    return RefinementReport(tuple(gains), tuple(opened))


def _gains(
    score: Score, box: ActionBox, points: Sequence[Sequence[float]], seed: int, c_nfe: float, c_reg: float
) -> torch.Tensor:
    """J of each prompt's candidate less J of the identity (P,), float32."""
    evaluations = Evaluations(score, box, [seed], c_nfe=c_nfe, c_reg=c_reg)
    base = [found.objective for found in evaluations.of([(row, box.identity) for row in range(len(points))])]
    tried = [found.objective for found in evaluations.of(list(enumerate(points)))]
    return torch.tensor(tried) - torch.tensor(base)
