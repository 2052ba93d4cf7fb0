"""Which intervention each prompt gets: the one it was given, or what the predictor says it needs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gendiff.causal.scene_features import CooccurrenceTable
from gendiff.causal.scene_graph import CausalSceneGraph
from gendiff.models.lina_predictor import LINAPredictor
from gendiff.samplers.action_box import ActionBox
from gendiff.samplers.intervention import Intervention

from .registry import suggest

WORDS = ("auto", "off")


def chosen_interventions(
    wanted: str | Intervention | Sequence[Intervention] | None,
    predictor: LINAPredictor | None,
    embeds: Tensor,
    words: Tensor,
    graphs: Sequence[CausalSceneGraph],
    cooccurrence: CooccurrenceTable | None = None,
    num_steps: int | None = None,
) -> list[Intervention]:
    """One intervention for each prompt.

    Args:
        wanted: "auto", "off", an `Intervention` for all prompts or one for each; None is "auto" with a predictor.
        predictor: asked for "auto".
        embeds: prompt embeddings (B, L, D).
        words: which tokens are valid, (B, L) bool.
        graphs: B scene graphs.
        cooccurrence: for the novelty of pairs among the graph features.
        num_steps: of the run; a warp that so few cannot bear is cut.

    Raises:
        ValueError: another word, "auto" without a predictor, or a wrong number of interventions.
    """
    if wanted is None:
        wanted = "off" if predictor is None else "auto"
    if isinstance(wanted, Intervention):
        return [wanted] * len(graphs)
    if not isinstance(wanted, str):
        given = list(wanted)
        if len(given) != len(graphs) or not all(isinstance(one, Intervention) for one in given):
            raise ValueError(f"intervention must be one Intervention for each of {len(graphs)} prompts, got {given!r}.")
        return given
    if wanted not in WORDS:
        raise ValueError(f"intervention must be an Intervention or a word, got {wanted!r}; {suggest(wanted, WORDS)}")
    if wanted == "off":
        return [Intervention()] * len(graphs)
    if predictor is None:
        raise ValueError(
            "intervention 'auto' needs a predictor and this model has none: give 'off' or an Intervention."
        )
    said = predicted_interventions(predictor, embeds, words, graph_features(graphs, cooccurrence))
    box = ActionBox.from_dict(predictor.config["box"])
    return [one if num_steps is None else box.limited(one, num_steps) for one in said]


def graph_features(graphs: Sequence[CausalSceneGraph], cooccurrence: CooccurrenceTable | None = None) -> Tensor:
    """Features of scene graphs as the predictor reads them, (B, 16) float32."""
    return torch.stack([graph.features(cooccurrence) for graph in graphs])


@torch.no_grad()
def predicted_interventions(
    predictor: LINAPredictor, embeds: Tensor, words: Tensor, features: Tensor, probe: Tensor | None = None
) -> list[Intervention]:
    """What the predictor says of B prompts; the identity where its gate stays shut."""
    box = ActionBox.from_dict(predictor.config["box"])
    said = predictor(embeds, words, features.to(embeds.device), probe)
    return [
        box.intervention(action) if is_open else Intervention()
        for action, is_open in zip(said.action.float().cpu(), said.gate.tolist(), strict=True)
    ]
