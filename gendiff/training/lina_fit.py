"""Stage C of LINA's training in whole: what to do, when to do it, and whether the two are to be trusted.

gendiff's realisation of LINA; the authors' training is not published.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gendiff.models.lina_predictor import LINAPredictor
from gendiff.pipelines.lina_choice import predicted_interventions
from gendiff.samplers.action_box import ActionBox
from gendiff.samplers.intervention import Intervention

from .lina_gate import train_gate
from .lina_inputs import PredictorInputs, labels_of
from .lina_regress import RegressionReport, train_predictor
from .lina_search import SearchResult

# Prompts are so few that an epoch is a step or two.
LEARNING_RATE, LOOKS = 3e-3, 30

Gain = Callable[[Sequence[Intervention], Sequence[int], Sequence[int]], Tensor]
"""(interventions, prompts, seeds) -> (P,), J of each prompt under its intervention less J of the plain model."""


@dataclass(frozen=True)
class Fit:
    """How a predictor was fitted.

    Attributes:
        regression: of its actions.
        held_out: number of prompts that neither actions nor gate have learned from.
        opened: for how many of those the gate opened.
        gain: their mean gain under the predictor, on seeds of their own.
        kept: False where that was not above 0, so that the predictor was made the identity again.
    """

    regression: RegressionReport
    held_out: int
    opened: int
    gain: float
    kept: bool

    def as_markdown(self) -> str:
        """What a model card says of it."""
        verdict = "" if self.kept else "; as that is no gain, the predictor was left untrained and changes nothing"
        return (
            f"On {self.held_out} prompts that its training did not see the predictor opened its gate {self.opened} "
            f"times, with a mean gain of {self.gain:+.3f} over all {self.held_out}{verdict}.\n"
        )


def fit_predictor(
    predictor: LINAPredictor,
    inputs: PredictorInputs,
    found: SearchResult,
    gain: Gain,
    split: tuple[Sequence[int], Sequence[int]],
    *,
    look_seeds: Sequence[int],
    fresh_seeds: Sequence[int],
    epochs: int = 3000,
    seed: int = 0,
) -> Fit:
    """Fit an untrained predictor, in place, to what a search found.

    The actions learn from accepted interventions, and stop where what they do to held-out prompts of that kind is best.
    The gate learns from what the actions gain on all prompts. What comes out must gain something on held-out prompts,
    or the predictor is left as it was.

    Args:
        predictor: untrained.
        inputs: of all P prompts.
        found: of a search on some of them, at least one.
        gain: measures interventions.
        split: prompts to learn from, prompts to hold out; by combination of factors (`split_by_combination`).
        look_seeds: of early stopping, and of the gains that the gate learns from.
        fresh_seeds: of the last test.
        epochs: of the actions, at most.
        seed: of the order of prompts.

    Raises:
        ValueError: as `train_predictor` and `train_gate`.
    """
    kept, out = split
    untrained = copy.deepcopy(predictor.state_dict())
    accepted = {prompt for prompt, good in zip(found.prompts, found.accepted.tolist(), strict=True) if good}
    watched = [prompt for prompt in out if prompt in accepted]

    def held_out(predictor: LINAPredictor) -> float:
        return gain(opened_interventions(predictor, inputs.rows(watched)), watched, look_seeds).mean().item()

    regression = train_predictor(
        predictor,
        inputs.rows(kept),
        labels_of(found, len(inputs)).rows(kept),
        held_out=held_out if watched else None,
        epochs=epochs,
        learning_rate=LEARNING_RATE,
        check_every=max(1, epochs // LOOKS),
        seed=seed,
    )
    train_gate(predictor, inputs.rows(kept), gain(opened_interventions(predictor, inputs.rows(kept)), kept, look_seeds))
    said = predicted_interventions(predictor, *inputs.rows(out).parts)
    reached = gain(said, out, fresh_seeds).mean().item()
    if reached <= 0:
        predictor.load_state_dict(untrained)
    opened = sum(not one.is_identity for one in said)
    return Fit(regression, len(out), opened, reached, reached > 0)


@torch.no_grad()
def opened_interventions(predictor: LINAPredictor, inputs: PredictorInputs) -> list[Intervention]:
    """What the predictor would do to each prompt, whatever its gate says."""
    box = ActionBox.from_dict(predictor.config["box"])
    action, _ = inputs.said_by(predictor)
    return [box.intervention(one) for one in action.float().cpu()]
