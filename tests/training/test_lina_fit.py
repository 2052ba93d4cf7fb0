"""The gate opens where the mean gain is above 0, and a predictor that gains nothing is not kept."""

from __future__ import annotations

import pytest
import torch
from planted_world import BOX, DIM, PlantedWorld

from gendiff.models.lina_predictor import LINAPredictor
from gendiff.samplers.intervention import Intervention
from gendiff.training.lina_fit import fit_predictor, opened_interventions
from gendiff.training.lina_gate import train_gate
from gendiff.training.lina_search import search_interventions

NEEDS = [True] * 24 + [False] * 24
SPLIT = ([*range(18), *range(24, 42)], [*range(18, 24), *range(42, 48)])


def untrained() -> LINAPredictor:
    torch.manual_seed(0)
    return LINAPredictor(DIM, BOX.to_dict())


def searched(world: PlantedWorld):
    return search_interventions(
        world.score, BOX, len(NEEDS), "cem", population=12, rounds=3, fresh_seeds=range(100, 108)
    )


def gain(world: PlantedWorld):
    def measured(ones, prompts, seeds):
        apart = [world.score(one, [i], seeds=seeds) for one, i in zip(ones, prompts, strict=True)]
        return torch.cat(apart).mean(1) - world.score(Intervention(), list(prompts), seeds=seeds).mean(1)

    return measured


def test_prompts_that_look_alike_share_a_gate_and_it_follows_their_mean_gain():
    alike = PlantedWorld([True]).inputs.rows([0] * 8)
    # Six of eight gain too little for a search to be sure, two lose a little: in the mean it is a gain.
    for gains, opens in (([0.1] * 6 + [-0.05] * 2, True), ([0.1] * 2 + [-0.05] * 6, False)):
        predictor = untrained()
        before = {name: value.clone() for name, value in predictor.state_dict().items()}
        train_gate(predictor, alike, torch.tensor(gains))
        with torch.no_grad():
            assert (predictor(*alike.parts).gate == opens).all()
        # Actions stay as they were: all rows but the gate's, of the last layer alone.
        after = predictor.state_dict()
        assert all(torch.equal(after[name], before[name]) for name in after if not name.startswith("out."))
        assert torch.equal(after["out.weight"][:-1], before["out.weight"][:-1])
        assert torch.equal(after["out.bias"][:-1], before["out.bias"][:-1])


def test_losses_count_more_than_gains():
    alike = PlantedWorld([True]).inputs.rows([0, 0])
    opened = []
    for weight in (0.5, 2.0):
        predictor = untrained()
        train_gate(predictor, alike, torch.tensor([0.15, -0.1]), open_weight=weight)
        with torch.no_grad():
            opened.append(predictor(*alike.parts).gate.tolist())
    assert opened == [[False] * 2, [True] * 2]


def test_the_fit_gains_on_prompts_that_it_did_not_learn_from():
    world, predictor = PlantedWorld(NEEDS), untrained()
    fit = fit_predictor(
        predictor, world.inputs, searched(world), gain(world), SPLIT, look_seeds=range(4), fresh_seeds=range(200, 204)
    )
    assert fit.kept and fit.held_out == 12 and fit.gain > 0.05
    with torch.no_grad():
        gate = predictor(*world.inputs.parts).gate
    assert gate[:18].float().mean() > 0.8 and gate[24:42].float().mean() < 0.1
    assert fit.opened == gate[SPLIT[1]].sum()
    assert f"opened its gate {fit.opened} times" in fit.as_markdown() and "untrained" not in fit.as_markdown()


def test_a_predictor_that_gains_nothing_on_held_out_prompts_is_the_identity():
    world, predictor = PlantedWorld(NEEDS), untrained()
    measure = gain(world)

    def unlucky(ones, prompts, seeds):
        """As measured, but for the last test."""
        return measure(ones, prompts, seeds) - (1.0 if list(seeds) == [200, 201] else 0.0)

    fit = fit_predictor(
        predictor, world.inputs, searched(world), unlucky, SPLIT, look_seeds=range(4), fresh_seeds=[200, 201]
    )
    assert not fit.kept and "left untrained" in fit.as_markdown()
    assert all(one.is_identity for one in opened_interventions(predictor, world.inputs))
    assert all(torch.equal(a, b) for a, b in zip(predictor.parameters(), untrained().parameters(), strict=True))


@pytest.mark.parametrize(
    ("gains", "options", "message"),
    [
        (torch.zeros(2), {}, r"gains must be finite \(3,\), one for each prompt, got \(2,\)"),
        (torch.tensor([0.0, float("nan"), 0.0]), {}, "gains must be finite"),
        (torch.zeros(3), {"open_weight": 0.0}, "open_weight must be above 0, got 0.0"),
        (torch.zeros(3), {"epochs": 0}, "epochs must be above 0, got 0"),
    ],
)
def test_bad_arguments_of_the_gate_are_named(gains, options, message):
    with pytest.raises(ValueError, match=message):
        train_gate(untrained(), PlantedWorld([True] * 3).inputs, gains, **options)
