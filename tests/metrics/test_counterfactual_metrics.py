"""Metrics against models that are exactly right, exactly idle, or wrong by a known amount."""

import pytest
import torch

from gendiff.causal.graph import CausalGraph, Variable
from gendiff.data.pendulum import Pendulum
from gendiff.metrics.counterfactual import (
    cf_gain,
    cf_l1,
    composition,
    effectiveness,
    l1,
    leakage,
    propagation_error,
    reversibility,
)
from gendiff.oracles.linear_scm import LinearSCM

GRAPH = CausalGraph(
    [
        Variable("season", scale=4.0),
        Variable("rain", scale=2.0),
        Variable("wet", scale=5.0),
        Variable("day", kind="categorical", num_classes=7),
    ],
    [("season", "rain"), ("rain", "wet")],
)


def pendulum_question(name="angle", count=12):
    data = Pendulum("test", size=16, num_images=count)
    variable = data.graph[name]
    values = torch.linspace(variable.low, variable.high, count)
    answers = [data.counterfactual(i, {name: value.item()}) for i, value in enumerate(values)]
    factual = torch.stack([data[i]["image"] for i in range(count)])
    truth = torch.stack([image for image, _ in answers])
    true_values = {key: torch.tensor([given[key] for _, given in answers]) for key in data.graph.names}
    return data, factual, truth, true_values


def test_l1_counts_grey_levels():
    black = -torch.ones(2, 3, 4, 4)
    assert l1(black, -black) == 255
    half = black.clone()
    half[0] += 2 / 255
    assert l1(black, half) == pytest.approx(0.5)


def test_the_exact_renderer_is_perfect_and_the_input_gains_nothing():
    _, factual, truth, _ = pendulum_question()
    assert cf_l1(truth, truth) == 0
    assert cf_gain(truth, truth, factual) == 1
    assert cf_l1(factual, truth) > 1
    assert cf_gain(factual, truth, factual) == 0
    assert cf_gain((factual + truth) / 2, truth, factual) == pytest.approx(0.5)
    assert cf_gain(2 * factual - truth, truth, factual) == pytest.approx(-1)


def test_no_gain_is_defined_where_nothing_should_change():
    images = torch.zeros(2, 1, 4, 4)
    with pytest.raises(ValueError, match="nothing to gain"):
        cf_gain(images, images, images)


def test_true_pendulums_are_effective_to_the_precision_of_their_reader():
    data, factual, truth, true_values = pendulum_question()
    good = effectiveness(data.graph, data.read(truth), true_values)
    idle = effectiveness(data.graph, data.read(factual), true_values)
    assert set(good) == set(data.graph.names)
    assert max(good.values()) < 0.05  # the reader's own error at 16 px
    assert idle["angle"] > 0.3
    assert idle["shadow_pos"] > 3 * good["shadow_pos"]


def test_effectiveness_divides_by_the_scale_and_counts_classes():
    truth = {"season": torch.zeros(4), "day": torch.tensor([1.0, 2.0, 3.0, 4.0])}
    read = {"season": torch.tensor([2.0, -2.0, 2.0, -2.0]), "day": torch.tensor([1.0, 2.0, 3.0, 0.0])}
    assert effectiveness(GRAPH, read, truth) == {"season": 0.5, "day": 0.75}


def linear_world(count=200):
    graph = CausalGraph(GRAPH.variables[:3], GRAPH.edges)
    scm = LinearSCM(graph, {("season", "rain"): 0.5, ("rain", "wet"): -3.0})
    values = scm.sample(count, generator=torch.Generator().manual_seed(0))
    return scm, values


def named(scm, values):
    return dict(zip(scm.graph.names, values.unbind(1), strict=True))


def test_the_linear_oracle_propagates_without_error():
    scm, values = linear_world()
    truth = named(scm, scm.counterfactual(values, {"season": 2.0}))
    assert propagation_error(scm.graph, truth, truth, "season") == {"rain": 0.0, "wet": 0.0}
    assert propagation_error(scm.graph, truth, truth, "wet") == {}
    assert leakage(scm.graph, truth, named(scm, values), "season") == {}


def test_a_model_that_stops_after_one_edge_misses_exactly_the_second():
    """Raising season by 2 raises rain by 1 and lowers wet by 3: an answer without wet is off by 3 / 5."""
    scm, values = linear_world()
    raised = scm.counterfactual(values, {"season": values[:, 0] + 2})
    stopped = raised.clone()
    stopped[:, 2] = values[:, 2]
    errors = propagation_error(scm.graph, named(scm, stopped), named(scm, raised), "season")
    assert errors == pytest.approx({"rain": 0.0, "wet": 0.6})


def test_leakage_looks_only_at_what_must_not_move():
    factual = {"season": torch.zeros(4), "rain": torch.zeros(4), "wet": torch.zeros(4), "day": torch.zeros(4)}
    moved = {name: values + 1 for name, values in factual.items()}
    assert leakage(GRAPH, moved, factual, "rain") == {"season": 0.25, "day": 1.0}
    assert leakage(GRAPH, factual, factual, "rain") == {"season": 0.0, "day": 0.0}


def test_composition_follows_one_chain():
    images = torch.rand(3, 1, 4, 4) / 2
    assert composition(images, lambda image: image) == {1: 0.0, 10: 0.0}
    drift = composition(images, lambda image: image + 1 / 127.5, counts=(1, 3))
    assert drift == pytest.approx({1: 1.0, 3: 3.0}, rel=1e-5)


def test_reversibility_goes_there_and_back():
    images = torch.rand(3, 1, 4, 4)
    assert reversibility(images, lambda image: -image, lambda image: -image) == {1: 0.0, 10: 0.0}
    lossy = reversibility(images, lambda image: 2 * image, lambda image: image / 4, counts=(1, 2))
    level = 127.5 * images.double().mean().item()
    assert lossy == pytest.approx({1: level / 2, 2: level * 3 / 4}, rel=1e-6)


def test_what_does_not_fit_is_named():
    one, two = torch.zeros(1, 1, 4, 4), torch.zeros(2, 1, 4, 4)
    with pytest.raises(ValueError, match="images: expected two tensors of one shape"):
        l1(one, two)
    with pytest.raises(ValueError, match="not empty"):
        l1(one[:0], one[:0])
    with pytest.raises(ValueError, match="no value of 'rain' is given; given: season"):
        effectiveness(GRAPH, {"rain": torch.zeros(2)}, {"season": torch.zeros(2)})
    with pytest.raises(ValueError, match="no value of 'wet'"):
        propagation_error(GRAPH, {"rain": torch.zeros(2)}, {"rain": torch.zeros(2)}, "season")
    with pytest.raises(ValueError, match="at least 1, got \\[0, 1\\]"):
        composition(one, lambda image: image, counts=(0, 1))
