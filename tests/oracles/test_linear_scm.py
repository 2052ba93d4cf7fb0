"""The linear SCM against definitions: structural equations, paths, statistics and Pearl's three steps."""

import itertools
import math

import pytest
import torch

from gendiff.causal.graph import CausalGraph, GraphError, Variable
from gendiff.oracles.linear_scm import LinearSCM

NAMES = ("rain", "sprinkler", "wet", "slip", "season")
EDGES = {
    ("season", "rain"): 0.8,
    ("season", "sprinkler"): -1.5,
    ("rain", "wet"): 2.0,
    ("sprinkler", "wet"): 0.7,
    ("wet", "slip"): 1.3,
    ("rain", "slip"): -0.4,
}
BIAS = {"rain": 3.0, "slip": -1.0}
SCALE = {"season": 2.0, "wet": 0.3}


def make_scm():
    graph = CausalGraph([Variable(name) for name in NAMES], EDGES)
    return LinearSCM(graph, EDGES, BIAS, SCALE)


def draw(scm, count=64, seed=0):
    return scm.sample(count, generator=torch.Generator().manual_seed(seed))


def column(scm, values, name):
    return values[:, scm.graph.index(name)]


def structural_equations(noise, do):
    """The model by hand, one variable after the other."""
    values = {}
    for name in ("season", "rain", "sprinkler", "wet", "slip"):
        own = BIAS.get(name, 0.0) + SCALE.get(name, 1.0) * noise[:, NAMES.index(name)]
        caused = sum((w * values[cause] for (cause, effect), w in EDGES.items() if effect == name), torch.zeros(()))
        values[name] = torch.full_like(own, do[name]) if name in do else own + caused
    return torch.stack([values[name] for name in NAMES], 1)


@pytest.mark.parametrize("do", [{}, {"rain": 5.0}, {"sprinkler": -2.0, "wet": 1.0}])
def test_solve_satisfies_the_structural_equations(do):
    noise = torch.randn(16, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(make_scm().solve(noise, do), structural_equations(noise, do))


def test_abduction_inverts_solve():
    scm = make_scm()
    noise = torch.randn(16, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(scm.abduct(scm.solve(noise)), noise)


def test_statistics_match_samples():
    scm, count = make_scm(), 200_000
    for do in ({}, {"rain": 5.0}):
        values = scm.sample(count, do, torch.Generator().manual_seed(3))
        spread = scm.covariance(do).diagonal().sqrt()
        # Five standard errors of a mean, and of a covariance (at most sqrt(2) products of standard deviations).
        assert ((values.mean(0) - scm.mean(do)).abs() <= 5 * spread / math.sqrt(count) + 1e-12).all()
        bound = 5 * math.sqrt(2 / count) * spread[:, None] * spread + 1e-12
        assert ((values.T.cov() - scm.covariance(do)).abs() <= bound).all()


def test_empty_intervention_and_actual_values_change_nothing():
    scm = make_scm()
    values = draw(scm)
    torch.testing.assert_close(scm.counterfactual(values, {}), values)
    torch.testing.assert_close(scm.counterfactual(values, {"rain": column(scm, values, "rain")}), values)


def test_counterfactual_moves_descendants_by_the_total_effect_and_nothing_else():
    scm = make_scm()
    values = draw(scm)
    after = scm.counterfactual(values, {"rain": column(scm, values, "rain") + 1.5})
    for name in NAMES:
        expected = 1.5 if name == "rain" else 1.5 * scm.total_effect("rain", name)
        torch.testing.assert_close(
            column(scm, after - values, name), torch.full((len(values),), expected, dtype=torch.float64)
        )
    assert scm.total_effect("rain", "slip") == pytest.approx(-0.4 + 2.0 * 1.3)
    assert scm.total_effect("rain", "season") == scm.total_effect("rain", "sprinkler") == 0
    assert scm.total_effect("season", "wet") == pytest.approx(0.8 * 2.0 - 1.5 * 0.7)


def test_intervention_differs_from_conditioning():
    scm = make_scm()
    mean, covariance = scm.mean(), scm.covariance()
    rain, sprinkler = scm.graph.index("rain"), scm.graph.index("sprinkler")
    seen = mean[sprinkler] + covariance[sprinkler, rain] / covariance[rain, rain] * (5.0 - mean[rain])
    assert scm.mean({"rain": 5.0})[sprinkler] == mean[sprinkler]
    assert abs(seen - mean[sprinkler]) > 0.5


def test_joint_intervention_is_one_intervention():
    scm = make_scm()
    values = draw(scm)
    both = scm.counterfactual(values, {"rain": 1.0, "wet": -3.0})
    assert (column(scm, both, "rain") == 1.0).all() and (column(scm, both, "wet") == -3.0).all()
    swapped = scm.counterfactual(values, {"wet": -3.0, "rain": 1.0})
    torch.testing.assert_close(both, swapped, rtol=0, atol=0)


def test_rows_are_independent_and_inputs_unchanged():
    scm = make_scm()
    values = draw(scm, 6)
    before = values.clone()
    target = torch.linspace(-2, 2, 6, dtype=torch.float64)
    together = scm.counterfactual(values, {"wet": target})
    alone = [scm.counterfactual(values[i : i + 1], {"wet": target[i].item()}) for i in range(6)]
    torch.testing.assert_close(together, torch.cat(alone))
    torch.testing.assert_close(values, before, rtol=0, atol=0)


def test_random_graphs_invert_and_agree_with_path_sums():
    generator = torch.Generator().manual_seed(4)
    names = "abcdef"
    for _ in range(10):
        pairs = [p for p in itertools.combinations(names, 2) if torch.rand((), generator=generator) < 0.5]
        weights = {p: torch.randn((), generator=generator).item() for p in pairs}
        scm = LinearSCM(CausalGraph([Variable(name) for name in reversed(names)], pairs), weights)

        def paths(cause, effect, weights=weights):
            steps = [(b, w) for (a, b), w in weights.items() if a == cause]
            return sum(w * (1.0 if b == effect else paths(b, effect)) for b, w in steps)

        for cause, effect in itertools.permutations(names, 2):
            assert scm.total_effect(cause, effect) == pytest.approx(paths(cause, effect), abs=1e-12)
        values = draw(scm)
        torch.testing.assert_close(scm.solve(scm.abduct(values)), values)


def test_bad_input_is_named():
    graph = CausalGraph([Variable("a"), Variable("b")], [("a", "b")])
    with pytest.raises(ValueError, match=r"weights must name the edges .*'a', 'b'"):
        LinearSCM(graph, {})
    with pytest.raises(ValueError, match="scale must be positive"):
        LinearSCM(graph, {("a", "b"): 1.0}, scale={"a": 0.0})
    with pytest.raises(GraphError, match="nope"):
        LinearSCM(graph, {("a", "b"): 1.0}, bias={"nope": 1.0})
    with pytest.raises(GraphError, match="nope"):
        LinearSCM(graph, {("a", "b"): 1.0}).sample(2, {"nope": 1.0})
    with pytest.raises(ValueError, match="discrete c"):
        LinearSCM(CausalGraph([Variable("c", kind="binary")]), {})
