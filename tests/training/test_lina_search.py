"""The search for interventions, where the best one is known."""

from __future__ import annotations

import pytest
import torch
from planted_world import BOX, PlantedWorld
from scipy import stats

from gendiff.oracles.linear_world import LinearWorld
from gendiff.samplers.action_box import ActionBox
from gendiff.samplers.intervention import Intervention
from gendiff.samplers.warps import WarpSpec
from gendiff.training.lina_candidates import nfe_ratio
from gendiff.training.lina_diagnose import diagnose
from gendiff.training.lina_search import lower_bound, search_interventions

SEEDS, FRESH = tuple(range(4)), tuple(range(100, 108))


def test_cem_finds_the_planted_strength_of_twenty_prompts():
    world = PlantedWorld([True] * 20)
    found = search_interventions(world.score, BOX, 20, "cem", seeds=SEEDS, fresh_seeds=FRESH, c_reg=0.0)
    alpha = torch.tensor([winner.intervention.alpha.get("effect", 0.0) for winner in found.winners])
    assert (alpha - world.best).abs().max() < 0.05
    # 15 drawn in each of 4 rounds, and the identity, which is scored once; draws beyond the box meet at its edge.
    assert all(50 <= len(candidates) <= 61 for candidates in found.candidates)
    assert all(candidates[0].intervention == Intervention() for candidates in found.candidates)


def test_cem_finds_the_strength_that_a_world_of_its_own_plants():
    world = LinearWorld()
    embeds = world.prompts(20, torch.Generator().manual_seed(0))

    def score(intervention, prompts, *, seeds):
        alpha = torch.full((len(prompts),), intervention.alpha.get("effect", 0.0))
        return world.expected_score(embeds[list(prompts)], alpha)[:, None].expand(-1, len(seeds)).exp()

    found = search_interventions(score, BOX, 20, "cem", c_reg=0.0)
    alpha = torch.tensor([winner.intervention.alpha.get("effect", 0.0) for winner in found.winners])
    assert (alpha - world.best_alpha(embeds)).abs().max() < 0.05
    assert torch.equal(found.accepted, world.best_alpha(embeds) != 0)


def test_the_grid_shares_candidates_and_comes_within_a_step():
    world = PlantedWorld([True] * 20)
    found = search_interventions(world.score, BOX, 20, "grid", seeds=SEEDS, fresh_seeds=FRESH, c_reg=0.0)
    alpha = torch.tensor([winner.intervention.alpha.get("effect", 0.0) for winner in found.winners])
    assert (alpha - world.best).abs().max() < 0.25 + 0.05
    searched = [call for call in world.calls if call[2] == SEEDS]
    assert len(searched) == 5
    assert all(prompts == tuple(range(20)) for _, prompts, _ in searched)


def test_the_bandit_learns_across_prompts():
    world = PlantedWorld([True] * 48, seed=3)
    features = torch.nn.functional.layer_norm(world.inputs.embeds.mean(1), (16,))[:, 1:4]
    found = search_interventions(
        world.score, BOX, 48, "bandit", features=features, rounds=6, seeds=SEEDS, fresh_seeds=FRESH, c_reg=0.0
    )
    base = diagnose(world.score, 48, FRESH).base
    after = torch.cat([world.score(label, [row], seeds=FRESH).mean(1) for row, label in enumerate(found.labels)])
    best_fixed = max(
        world.score(BOX.intervention([y, 0, 0, 0, 0]), range(48), seeds=FRESH).mean().item() for y in (-1, -0.5, 0.5, 1)
    )
    assert after.mean() > base.mean() + 0.1
    assert after.mean() > best_fixed + 0.1


def test_the_sweep_moves_one_coordinate_at_a_time_from_the_best_so_far():
    box = ActionBox(("side", "light"), lam_max=4.0, stop_range=0.0, kappa_max=1.0)
    wanted = (0.5, -1.0, 0.75)

    def score(intervention, prompts, *, seeds):
        y = box.normalise(intervention)
        return torch.full((len(prompts), len(seeds)), 1 - sum(abs(a - b) for a, b in zip(y, wanted, strict=False)) / 6)

    found = search_interventions(score, box, [4], "grid", c_nfe=0.0, c_reg=0.0)
    assert found.labels[0] == Intervention(alpha={"side": 0.5, "light": -1.0}, lam=3.0)
    assert found.actions[0, :3].tolist() == pytest.approx(wanted)
    assert len(found.candidates[0]) == 1 + 4 + 4 + 4


def test_prices_keep_what_does_not_help_out():
    box = ActionBox(lam_max=4.0)

    def score(intervention, prompts, *, seeds):
        return torch.full((len(prompts), len(seeds)), 0.5 + 0.001 * intervention.lam)

    dear = search_interventions(score, box, 1)
    free = search_interventions(score, box, 1, c_nfe=0.0, c_reg=0.0)
    assert not dear.accepted.any() and dear.labels[0].is_identity
    assert free.accepted.all() and free.labels[0].lam == 4.0
    assert free.gains[0] == pytest.approx(0.004, abs=1e-7)


def test_a_winner_by_luck_is_refused_on_fresh_seeds():
    def score(intervention, prompts, *, seeds):
        lucky = torch.tensor([0.3 if seed < 100 else 0.3 * (-1) ** seed for seed in seeds])
        return (0.5 + (0.0 if intervention.is_identity else 1.0) * lucky).expand(len(prompts), -1)

    found = search_interventions(score, BOX, 3, seeds=SEEDS, fresh_seeds=FRESH)
    assert all(not winner.intervention.is_identity for winner in found.winners)
    assert not found.accepted.any()
    assert found.labels == (Intervention(gate=False),) * 3
    assert torch.equal(found.actions, torch.zeros(3, 5))


def test_a_gain_that_is_sure_is_accepted_and_an_unsure_one_is_not():
    gains = torch.tensor([[0.1, 0.1, 0.1, 0.1], [0.4, -0.3, 0.3, 0.0], [0.0, 0.0, 0.0, 0.0]])
    assert (lower_bound(gains) > 0).tolist() == [True, False, False]
    with pytest.raises(ValueError, match="at least 2 paired gains"):
        lower_bound(gains[:, :1])


@pytest.mark.parametrize("count", [2, 3, 4, 5, 8, 16, 64])
@pytest.mark.parametrize("confidence", [0.8, 0.9, 0.95])
def test_the_bound_is_students(count, confidence):
    gains = torch.randn(6, count, generator=torch.Generator().manual_seed(count), dtype=torch.float64)
    scale = gains.std(1) / count**0.5
    expected = gains.mean(1) - float(stats.t.ppf(confidence, count - 1)) * scale
    torch.testing.assert_close(lower_bound(gains, confidence) / scale, expected / scale, atol=0.02, rtol=0)


def test_the_same_seed_finds_the_same():
    world = PlantedWorld([True] * 3)
    first, second = (search_interventions(world.score, BOX, 3, "cem", seed=5) for _ in range(2))
    other = search_interventions(world.score, BOX, 3, "cem", seed=6)
    assert first.candidates == second.candidates
    assert torch.equal(first.actions, second.actions)
    assert other.candidates != first.candidates


def test_only_the_asked_prompts_are_searched():
    world = PlantedWorld([True] * 8)
    found = search_interventions(world.score, BOX, [5, 2])
    assert found.prompts == (5, 2)
    assert {prompt for _, prompts, _ in world.calls for prompt in prompts} == {2, 5}


def test_the_diagnosis_marks_what_fails():
    world = PlantedWorld([True, False] * 6, seed=1)
    found = diagnose(world.score, 12, seeds=range(4))
    assert world.calls[0][0] == Intervention()
    assert not found.hard[1::2].any() and (found.base[1::2] > 0.98).all()
    assert torch.equal(found.hard, found.base < 0.9)
    assert found.hard_prompts == [row for row in range(12) if found.base[row] < 0.9]


def test_the_cost_counts_the_steps_that_the_window_holds():
    assert nfe_ratio(Intervention(alpha={"side": 1.0}, warp=WarpSpec("moebius", 3.0))) == 1
    assert nfe_ratio(Intervention(lam=1.0, window=(1.0, 0.4))) == pytest.approx(1.3)
    assert nfe_ratio(Intervention(lam=1.0, window=(1.0, 0.4)), rows=1) == pytest.approx(1.6)
    warped = Intervention(lam=1.0, window=(1.0, 0.4), warp=WarpSpec("moebius", 2.0))
    assert nfe_ratio(warped) == pytest.approx(1 + 0.75 / 2)
    assert nfe_ratio(Intervention(lam=1.0, gate=False)) == 1


@pytest.mark.parametrize("bad", [float("nan"), 1.2, -0.1])
@pytest.mark.parametrize("method", ["grid", "cem"])
def test_a_broken_verifier_is_named_with_candidate_and_prompt(bad, method):
    def score(intervention, prompts, *, seeds):
        scores = torch.full((len(prompts), len(seeds)), 0.5)
        if not intervention.is_identity:
            scores[torch.tensor(prompts) == 7, 1] = bad
        return scores

    with pytest.raises(ValueError, match=rf"candidate \d+ \(\{{.*effect.* at prompt 7 must lie in \[0, 1\], got {bad}"):
        search_interventions(score, BOX, [3, 7], method)


def test_scores_of_a_wrong_shape_and_a_broken_base_are_named():
    with pytest.raises(ValueError, match=r"must be \(prompts, seeds\) = \(2, 4\), got \(2,\)"):
        search_interventions(lambda i, p, *, seeds: torch.ones(len(p)), BOX, 2)
    with pytest.raises(ValueError, match=r"score of candidate 0 \(.*\) at prompt 0 must lie in"):
        diagnose(lambda i, p, *, seeds: torch.full((len(p), len(seeds)), 2.0), 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "random"}, "one of grid, cem, bandit, got 'random'"),
        ({"prompts": [1, 1]}, "indices that differ"),
        ({"seeds": ()}, "seeds must differ and be at least one"),
        ({"fresh_seeds": (0, 1)}, "none of seeds"),
        ({"fresh_seeds": (9,)}, "at least 2 that differ"),
        ({"confidence": 1.0}, "confidence must lie in"),
        ({"method": "bandit"}, "features are for method 'bandit'"),
        ({"method": "bandit", "features": torch.zeros(3, 2)}, r"features must be finite \(2, F\), got \(3, 2\)"),
    ],
)
def test_bad_arguments_are_named_before_anything_runs(arguments, message):
    def score(intervention, prompts, *, seeds):
        raise AssertionError("ran")

    with pytest.raises(ValueError, match=message):
        search_interventions(score, BOX, **{"prompts": 2, **arguments})
