"""The predictor learns what the search found, where the truth is known."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from planted_world import BOX, DIM, PlantedWorld

from gendiff.models.lina_predictor import LINAPredictor
from gendiff.training.lina_inputs import PredictorInputs, PredictorLabels, labels_of, split_by_combination
from gendiff.training.lina_refine import refine_predictor
from gendiff.training.lina_regress import train_predictor
from gendiff.training.lina_search import search_interventions

SEEDS, FRESH = tuple(range(4)), tuple(range(100, 108))


def untrained(seed: int = 0) -> LINAPredictor:
    torch.manual_seed(seed)
    return LINAPredictor(DIM, BOX.to_dict())


@cache
def searched() -> tuple[PlantedWorld, PredictorLabels]:
    """64 prompts that need an intervention and 32 that need none, with labels of a search."""
    world = PlantedWorld([True] * 64 + [False] * 32)
    found = search_interventions(world.score, BOX, 96, "cem", population=12, rounds=3, seeds=SEEDS, fresh_seeds=FRESH)
    return world, labels_of(found, 96)


def held_out_j(world: PlantedWorld, seeds: tuple[int, ...] = FRESH):
    """J of what a predictor says of the world's prompts."""

    return lambda predictor: world.reached(predictor(*_parts(world.inputs)), seeds)


def _parts(inputs: PredictorInputs) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return inputs.embeds, inputs.mask, inputs.graph


def r_squared(said: torch.Tensor, truth: torch.Tensor) -> float:
    return 1 - ((said - truth).square().sum() / (truth - truth.mean()).square().sum()).item()


def fresh_world() -> PlantedWorld:
    return PlantedWorld([True] * 32 + [False] * 40, seed=11)


def test_the_search_leaves_prompts_alone_that_need_nothing():
    world, labels = searched()
    assert not labels.accepted[~world.needs].any()
    assert labels.accepted[world.best.abs() > 0.2].all()


@pytest.mark.parametrize("loss", ["regress", "rwr"])
def test_the_predictor_says_the_planted_strength_of_prompts_it_never_saw(loss):
    world, labels = searched()
    fresh, predictor = fresh_world(), untrained()
    # What decides when to stop is neither trained on nor tested on.
    stopping = held_out_j(PlantedWorld([True] * 16 + [False] * 16, seed=31))
    report = train_predictor(predictor, world.inputs, labels, loss=loss, held_out=stopping, seed=1)
    with torch.no_grad():
        said = predictor(*_parts(fresh.inputs))
    alpha = said.action[:32, 0]
    # Weights over all candidates pull towards the middle of the box.
    assert r_squared(alpha, fresh.best[:32]) > (0.9 if loss == "regress" else 0.8)
    assert (~said.gate[32:]).float().mean() >= 0.95
    assert report.held_out[0][1] < max(value for _, value in report.held_out) - 0.1


def test_what_is_returned_is_the_best_look_and_training_stops_after_patience():
    world, labels = searched()
    values = iter([0.1, 0.3, 0.9, 0.2, 0.2, 0.2, 0.95])
    seen = []

    def measure(predictor: LINAPredictor) -> float:
        seen.append({name: value.clone() for name, value in predictor.state_dict().items()})
        return next(values)

    predictor = untrained()
    report = train_predictor(predictor, world.inputs, labels, held_out=measure, check_every=2, patience=3)
    assert report.best_epoch == 4
    assert report.held_out == ((0, 0.1), (2, 0.3), (4, 0.9), (6, 0.2), (8, 0.2), (10, 0.2))
    assert all(torch.equal(value, seen[2][name]) for name, value in predictor.state_dict().items())
    assert not predictor.training


def test_a_training_that_only_hurts_returns_the_identity():
    world, labels = searched()
    values = iter([0.9, *[0.1] * 20])
    predictor = untrained()
    train_predictor(predictor, world.inputs, labels, held_out=lambda _: next(values), check_every=1, patience=3)
    said = predictor(*_parts(world.inputs))
    assert torch.equal(said.action, torch.zeros(96, 5)) and not said.gate.any()


def test_the_seed_determines_the_weights():
    world, labels = searched()
    trained = []
    for seed in (3, 3, 4):
        predictor = untrained()
        train_predictor(predictor, world.inputs, labels, epochs=3, batch_size=16, seed=seed)
        trained.append(torch.cat([value.flatten() for value in predictor.state_dict().values()]))
    assert torch.equal(trained[0], trained[1])
    assert not torch.equal(trained[0], trained[2])


def test_rows_that_are_not_accepted_are_not_read():
    world, labels = searched()
    spoiled = PredictorLabels(
        torch.where(labels.accepted[:, None], labels.action, torch.tensor(float("nan"))), labels.accepted
    )
    trained = []
    for given in (labels, spoiled):
        predictor = untrained()
        train_predictor(predictor, world.inputs, given, epochs=2)
        trained.append(torch.cat([value.flatten() for value in predictor.state_dict().values()]))
    assert torch.equal(trained[0], trained[1])


def test_refinement_on_fresh_prompts_raises_what_a_half_trained_predictor_gets():
    world, labels = searched()
    predictor = untrained()
    train_predictor(predictor, world.inputs, labels, epochs=15)
    measure = held_out_j(fresh_world(), seeds=tuple(range(500, 504)))
    with torch.no_grad():
        before = measure(predictor)
    near = PlantedWorld([True] * 32, seed=21)
    report = refine_predictor(predictor, near.inputs, near.score, BOX, rounds=40, learning_rate=1e-3)
    with torch.no_grad():
        after = measure(predictor)
    assert after > before + 0.02
    assert sum(report.gains[-10:]) > sum(report.gains[:10])


def test_a_gate_in_doubt_is_shut_unless_an_open_one_weighs_more():
    # Ten prompts alike, of which five need an intervention.
    inputs = PlantedWorld([True]).inputs.rows([0] * 10)
    labels = PredictorLabels(torch.full((10, 5), 0.5), torch.arange(10) < 5)
    opened = []
    for weight in (0.5, 2.0):
        predictor = untrained()
        train_predictor(predictor, inputs, labels, open_weight=weight, epochs=200, learning_rate=1e-2)
        with torch.no_grad():
            opened.append(predictor(*_parts(inputs)).gate.tolist())
    assert opened == [[False] * 10, [True] * 10]


def test_splits_share_no_combination():
    values = [{"colour": c, "side": s, "size": z} for c in "rgb" for s in "lr" for z in "st" for _ in range(2)]
    train, held_out = split_by_combination(values, ["colour", "side"], held_out=0.33, seed=2)
    assert sorted(train + held_out) == list(range(24))
    sides = [{(values[row]["colour"], values[row]["side"]) for row in rows} for rows in (train, held_out)]
    assert not sides[0] & sides[1]
    assert len(sides[1]) == 2
    assert split_by_combination(values, seed=1) == split_by_combination(values, seed=1)
    with pytest.raises(ValueError, match="no factor 'light'; it has colour, side, size"):
        split_by_combination(values, ["light"])
    with pytest.raises(ValueError, match="at least 2 combinations"):
        split_by_combination([{"a": "b"}] * 3)


def test_prompts_that_were_not_searched_are_to_keep_their_gate_shut():
    world = PlantedWorld([True] * 6)
    found = search_interventions(world.score, BOX, [4, 1], "grid", c_reg=0.0)
    labels = labels_of(found, 6)
    assert labels.accepted.nonzero().flatten().tolist() == [p for p in (1, 4) if found.accepted[(4, 1).index(p)]]
    assert torch.equal(labels.action[4], found.actions[0])
    assert [len(gains) for _, gains in labels.tried] == [0, 5, 0, 0, 5, 0]
    assert labels.tried[1][1][0] == 0
    with pytest.raises(ValueError, match="num_prompts must be above 4"):
        labels_of(found, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"loss": "mse"}, "'regress' or 'rwr', got 'mse'"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"open_weight": float("nan")}, "open_weight must be above 0, got nan"),
        ({"labels": PredictorLabels(torch.zeros(3, 4), torch.zeros(3))}, r"labels must be action \(3, 5\)"),
        ({"labels": PredictorLabels(torch.full((3, 5), 2.0), torch.ones(3))}, r"must lie in \[-1, 1\]"),
        ({"loss": "rwr"}, "'rwr' needs labels.tried for all 3 prompts, got 0"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    given = {"labels": PredictorLabels(torch.zeros(3, 5), torch.zeros(3, dtype=torch.bool)), **arguments}
    with pytest.raises(ValueError, match=message):
        train_predictor(untrained(), PlantedWorld([True] * 3).inputs, **given)
    with pytest.raises(ValueError, match="one row for each prompt"):
        PredictorInputs(torch.zeros(2, 3, 4), torch.ones(2, 3), torch.zeros(3, 16))


def test_a_held_out_score_that_is_not_finite_is_named():
    world, labels = searched()
    with pytest.raises(FloatingPointError, match="held_out must give a finite J, got nan after epoch 0"):
        train_predictor(untrained(), world.inputs, labels, held_out=lambda _: float("nan"))
