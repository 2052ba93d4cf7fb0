"""The causal layer on random graphs: inverse, reach of an intervention, reach of noise, and what is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from gendiff.causal.graph import CausalGraph, GraphError, Variable
from gendiff.causal.labels import embed, embed_all, unembed, unembed_all
from gendiff.models.causal_mechanisms import MECHANISMS, CausalMechanisms

EXACT = ["additive", "affine"]
BATCH = 3
# Derandomised: the same graphs in every run. Building networks is slow in bursts, so no deadline.
random_graphs = settings(
    max_examples=40, derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)


@st.composite
def graphs(draw: st.DrawFn, equal_widths: bool = False) -> CausalGraph:
    """Up to 10 variables of all kinds, declared in an order that need not be causal."""
    count = draw(st.integers(1, 10))
    variables = [draw(variables_named(f"v{i}", equal_widths)) for i in range(count)]
    order = draw(st.permutations(range(count)))
    pairs = [(order[i], order[j]) for i in range(count) for j in range(i + 1, count)]
    chosen = draw(st.lists(st.sampled_from(pairs), unique=True)) if pairs else []
    return CausalGraph(variables, [(f"v{cause}", f"v{effect}") for cause, effect in chosen])


@st.composite
def variables_named(draw: st.DrawFn, name: str, equal_widths: bool) -> Variable:
    kind = "continuous" if equal_widths else draw(st.sampled_from(["continuous", "binary", "categorical"]))
    if kind == "categorical":
        return Variable(name, kind, num_classes=draw(st.integers(2, 4)))
    dim = 2 if equal_widths else draw(st.integers(1, 3))
    if kind == "binary":
        return Variable(name, kind, dim=dim)
    return Variable(
        name, loc=draw(st.sampled_from([0.0, 2.5, -40.0])), scale=draw(st.sampled_from([0.5, 44.0])), dim=dim
    )


def make(graph: CausalGraph, mechanism: str = "additive", hidden_dim: int = 8, gain: float = 1.0) -> CausalMechanisms:
    """In float64; `gain` enlarges the weights, so that effects are not small."""
    torch.manual_seed(0)
    layer = CausalMechanisms(graph.to_dict(), hidden_dim, mechanism).double()
    for parameter in layer.parameters():
        parameter.data *= gain
    return layer.requires_grad_(False)


def noise(graph: CausalGraph, batch: int = BATCH) -> Tensor:
    return torch.randn(batch, graph.dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def raw_values(graph: CausalGraph, names: tuple[str, ...], seed: int = 2) -> dict[str, Tensor]:
    """A value for each sample, in raw units."""
    generator = torch.Generator().manual_seed(seed)
    values = {}
    for name in names:
        variable, draw = graph[name], torch.rand(BATCH, generator=generator, dtype=torch.float64)
        if variable.kind == "categorical":
            values[name] = (draw * variable.dim).floor()
        elif variable.kind == "binary":
            values[name] = (draw - 0.5).sign()
        else:
            values[name] = variable.loc + variable.scale * (4 * draw - 2)
    return values


def block(graph: CausalGraph, flat: Tensor, name: str) -> Tensor:
    return flat[:, graph.slices[name]]


def chain(mechanism: str = "additive", kind: str = "continuous") -> CausalMechanisms:
    return make(CausalGraph([Variable(name, kind, dim=2) for name in "abc"], [("a", "b"), ("b", "c")]), mechanism)


@pytest.mark.parametrize("mechanism", EXACT)
@random_graphs
@given(graph=graphs())
def test_noise_and_factors_are_one_to_one(mechanism: str, graph: CausalGraph):
    layer, u = make(graph, mechanism, gain=1.5), noise(graph)
    assert (layer.inverse(layer(u)) - u).abs().max() <= 1e-12
    z = noise(graph)
    assert (layer(layer.inverse(z)) - z).abs().max() <= 1e-12


@random_graphs
@given(graph=graphs(equal_widths=True))
def test_the_published_sum_of_noise_is_one_to_one_too(graph: CausalGraph):
    layer, u = make(graph, "legacy_sum"), noise(graph)
    assert (layer.inverse(layer(u)) - u).abs().max() <= 1e-12


@pytest.mark.parametrize("mechanism", EXACT)
@random_graphs
@given(graph=graphs(), data=st.data())
def test_an_intervention_reaches_its_descendants_and_nothing_else(
    mechanism: str, graph: CausalGraph, data: st.DataObject
):
    layer, u = make(graph, mechanism, gain=1.5), noise(graph)
    z = layer(u)
    names = data.draw(st.lists(st.sampled_from(graph.names), min_size=1, max_size=3, unique=True))
    do = raw_values(graph, tuple(names))
    changed = layer.intervene(u, z, do)
    reached = graph.mutilate(names).descendants(*names)
    for name in graph.names:
        before, after = block(graph, z, name), block(graph, changed, name)
        if name in do:
            assert torch.equal(after, embed(graph[name], do[name]).expand_as(after))
        elif name in reached:
            assert (after != before).any(dim=1).all()
        else:
            assert torch.equal(after, before)


@pytest.mark.parametrize("mechanism", EXACT)
@random_graphs
@given(graph=graphs())
def test_intervening_with_the_actual_value_changes_nothing(mechanism: str, graph: CausalGraph):
    layer = make(graph, mechanism)
    labels = raw_values(graph, graph.names)
    z = embed_all(graph, torch.stack([labels[name] for name in graph.names], dim=1))
    u = layer.inverse(z)
    for name in graph.names:
        do = {name: unembed(graph[name], block(graph, z, name))}
        assert (layer.intervene(u, z, do) - z).abs().max() <= 1e-6


@pytest.mark.parametrize("mechanism", EXACT)
@random_graphs
@given(graph=graphs())
def test_setting_everything_leaves_nothing_to_the_noise(mechanism: str, graph: CausalGraph):
    layer = make(graph, mechanism)
    do = raw_values(graph, graph.names)
    expected = embed_all(graph, torch.stack([do[name] for name in graph.names], dim=1))
    for u in (noise(graph), torch.zeros(BATCH, graph.dim, dtype=torch.float64)):
        assert torch.equal(layer.intervene(u, layer(u), do), expected)


@pytest.mark.parametrize("mechanism", EXACT)
@random_graphs
@given(graph=graphs(), data=st.data())
def test_interventions_combine(mechanism: str, graph: CausalGraph, data: st.DataObject):
    layer, u = make(graph, mechanism), noise(graph)
    z = layer(u)
    names = data.draw(st.lists(st.sampled_from(graph.names), min_size=1, max_size=4, unique=True))
    do = raw_values(graph, tuple(names))
    together = layer.intervene(u, z, do)
    assert torch.equal(layer.intervene(u, z, dict(reversed(do.items()))), together)
    # One after the other, causes first: a later do of a cause would let its effects follow again.
    one_by_one = z
    for name in sorted(names, key=graph.topological_order.index):
        one_by_one = layer.intervene(u, one_by_one, {name: do[name]})
    assert torch.equal(one_by_one, together)


def jacobian_support(layer: CausalMechanisms) -> set[tuple[str, str]]:
    """Pairs (cause, effect) whose blocks of dz / du are not zero everywhere."""
    graph = layer.graph
    jacobian = torch.func.jacrev(layer)(noise(graph, batch=1))[0, :, 0]
    return {
        (cause, effect)
        for cause, columns in graph.slices.items()
        for effect, rows in graph.slices.items()
        if jacobian[rows, columns].abs().max() > 0
    }


@pytest.mark.parametrize("mechanism", EXACT)
@random_graphs
@given(graph=graphs())
def test_factors_depend_on_their_own_noise_and_their_ancestors(mechanism: str, graph: CausalGraph):
    own = {(name, name) for name in graph.names}
    inherited = {(cause, effect) for effect in graph.names for cause in graph.ancestors(effect)}
    assert jacobian_support(make(graph, mechanism)) == own | inherited


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_only_the_published_mechanism_stops_after_one_edge(mechanism: str):
    layer = chain(mechanism)
    u = noise(layer.graph)
    z = layer(u)
    changed = layer.intervene(u, z, raw_values(layer.graph, ("a",)))
    assert not torch.equal(block(layer.graph, changed, "b"), block(layer.graph, z, "b"))
    moved = not torch.equal(block(layer.graph, changed, "c"), block(layer.graph, z, "c"))
    assert moved == (mechanism != "legacy_sum")
    assert (("a", "c") in jacobian_support(layer)) == (mechanism != "legacy_sum")


def test_the_published_mechanism_cannot_tell_parents_apart():
    graph = CausalGraph([Variable(name, dim=2) for name in "abc"], [("a", "c"), ("b", "c")])
    u = noise(graph)
    swapped = u[:, [2, 3, 0, 1, 4, 5]]
    for mechanism, blind in (("additive", False), ("legacy_sum", True)):
        layer = make(graph, mechanism)
        same = torch.allclose(block(graph, layer(u), "c"), block(graph, layer(swapped), "c"), rtol=0, atol=1e-12)
        assert same == blind


def test_additive_factors_follow_the_equation():
    layer = chain()
    z = layer(noise(layer.graph))
    u = layer.inverse(z)
    assert torch.equal(z[:, :2], u[:, :2]), "a root is its noise"
    expected = layer.functions["b"](z[:, :2]) + u[:, 2:4]
    torch.testing.assert_close(z[:, 2:4], expected, rtol=0, atol=1e-14)


def test_affine_factors_follow_the_equation():
    layer = chain("affine")
    z = layer(noise(layer.graph))
    u = layer.inverse(z)
    shift, log_scale = layer.functions["b"](z[:, :2]).chunk(2, dim=1)
    torch.testing.assert_close(z[:, 2:4], shift + torch.exp(2 * torch.tanh(log_scale)) * u[:, 2:4])


def test_affine_scales_stay_invertible_whatever_the_weights():
    layer = chain("affine")
    for parameter in layer.parameters():
        parameter.data *= 100
    shift, scale = layer.effect("b", {"a": torch.randn(64, 2, dtype=torch.float64)})
    assert isinstance(scale, Tensor) and isinstance(shift, Tensor)
    assert scale.min() >= 0.13 and scale.max() <= 7.4  # exp(-2), exp(2)


def test_parents_are_read_in_declaration_order():
    variables = [Variable("late"), Variable("early"), Variable("child")]
    graph = CausalGraph(variables, [("early", "child"), ("late", "child"), ("early", "late")])
    layer, z = make(graph), noise(graph)
    shift, _ = layer.effect("child", {name: block(graph, z, name) for name in graph.names})
    torch.testing.assert_close(shift, layer.functions["child"](z[:, :8]))


def test_half_precision_weights_leave_factors_as_exact_as_they_are(tiny_graph: Callable[[], CausalGraph]):
    graph = tiny_graph()
    layer = CausalMechanisms(graph.to_dict(), hidden_dim=8).bfloat16()
    u = noise(graph).float()
    z = layer(u)
    assert z.dtype == torch.float32
    assert (layer.inverse(z) - u).abs().max() <= 1e-5


def test_values_may_come_in_another_precision(tiny_graph: Callable[[], CausalGraph]):
    graph = tiny_graph()
    layer = CausalMechanisms(graph.to_dict(), hidden_dim=8)
    u = noise(graph).float()
    do = raw_values(graph, ("thickness", "digit"))
    assert do["digit"].dtype == torch.float64
    changed = layer.intervene(u, layer(u), do)
    assert changed.dtype == torch.float32
    read = unembed_all(graph, changed)
    assert torch.equal(read["digit"], do["digit"].float())
    torch.testing.assert_close(read["thickness"], do["thickness"].float())


def test_arguments_are_left_alone(tiny_graph: Callable[[], CausalGraph]):
    graph = tiny_graph()
    layer, u = make(graph), noise(graph)
    z = layer(u)
    copies = (u.clone(), z.clone())
    layer.intervene(u, z, raw_values(graph, graph.names))
    layer.inverse(z)
    assert torch.equal(u, copies[0]) and torch.equal(z, copies[1])


def test_stored_noise_has_the_moments_of_each_block(tiny_graph: Callable[[], CausalGraph]):
    graph = tiny_graph()
    layer = CausalMechanisms(graph.to_dict())
    generator = torch.Generator().manual_seed(3)
    mixing = torch.randn(graph.dim, graph.dim, generator=generator)
    u = torch.randn(500, graph.dim, generator=generator) @ mixing + 3
    layer.store_noise(u)
    torch.testing.assert_close(layer.noise_mean, u.mean(dim=0))
    whole = torch.cov(u.T)
    inside = torch.zeros_like(whole, dtype=torch.bool)
    for place in graph.slices.values():
        inside[place, place] = True
    torch.testing.assert_close(layer.noise_cov, whole.where(inside, torch.zeros(())))
    with pytest.raises(ValueError, match="at least 2 samples, got 1"):
        layer.store_noise(u[:1])


def test_noise_of_a_one_dimensional_block_is_a_variance():
    graph = CausalGraph([Variable("a", dim=1), Variable("b", dim=1)])
    layer = CausalMechanisms(graph.to_dict())
    u = torch.tensor([[1.0, 5.0], [3.0, 5.0]])
    layer.store_noise(u)
    assert layer.noise_cov.tolist() == [[2.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_save_and_load_keep_weights_noise_and_graph(mechanism: str, tmp_path):
    variables = [
        Variable("a", loc=2.5, scale=2.0, low=-1.0, high=7.0, dim=3),
        Variable("b", loc=-4.0, scale=0.1, dim=3),
    ]
    graph = CausalGraph(variables, [("b", "a")])
    layer = CausalMechanisms(graph.to_dict(), hidden_dim=5, mechanism=mechanism)
    layer.store_noise(torch.randn(9, graph.dim, generator=torch.Generator().manual_seed(4)))
    layer.save_pretrained(tmp_path)
    again = CausalMechanisms.from_pretrained(tmp_path)
    assert again.graph == graph
    assert (again.config["hidden_dim"], again.config["mechanism"]) == (5, mechanism)
    assert torch.equal(again.noise_mean, layer.noise_mean) and torch.equal(again.noise_cov, layer.noise_cov)
    u = noise(graph).float()
    assert torch.equal(again(u), layer(u))


def test_bad_arguments_are_refused(tiny_graph: Callable[[], CausalGraph]):
    graph = tiny_graph()
    with pytest.raises(ValueError, match="mechanism must be one of additive, affine, legacy_sum, got 'sum'"):
        CausalMechanisms(graph.to_dict(), mechanism="sum")
    with pytest.raises(ValueError, match=r"legacy_sum .* need one dim, got \[2, 3\]"):
        CausalMechanisms(graph.to_dict(), mechanism="legacy_sum")
    layer = make(graph)
    u = noise(graph)
    for call in (layer, layer.inverse):
        with pytest.raises(ValueError, match=r"shape \(B, 11\), got \(3, 10\)"):
            call(u[:, 1:])
        with pytest.raises(ValueError, match=r"shape \(B, 11\), got \(11,\)"):
            call(u[0])
    with pytest.raises(GraphError, match="unknown variable 'colour'"):
        layer.intervene(u, u, {"colour": torch.zeros(BATCH)})
