"""Causal graphs: order, reachability, what makes two graphs equal, and what is refused."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable
from dataclasses import replace

import networkx as nx
import pytest

from gendiff.causal.graph import CausalGraph, GraphError, Variable

# A diamond with a tail: a -> {b, c} -> d -> e, and f on its own. Declared out of order on purpose.
NAMES = ("d", "b", "f", "a", "e", "c")
EDGES = (("a", "b"), ("a", "c"), ("b", "d"), ("c", "d"), ("d", "e"))


def named(*names: str) -> list[Variable]:
    return [Variable(name) for name in names]


@pytest.fixture
def diamond() -> CausalGraph:
    return CausalGraph(named(*NAMES), EDGES)


def random_graph(seed: int) -> CausalGraph:
    rng = random.Random(seed)
    names = [f"v{i}" for i in range(rng.randint(1, 10))]
    order = rng.sample(names, len(names))
    edges = [(order[i], order[j]) for i in range(len(order)) for j in range(i + 1, len(order)) if rng.random() < 0.35]
    rng.shuffle(edges)
    return CausalGraph(named(*names), edges)


def test_a_cycle_is_named():
    with pytest.raises(GraphError, match=r"graph has a cycle: b -> c -> d -> b$"):
        CausalGraph(named("a", "b", "c", "d"), [("a", "b"), ("b", "c"), ("c", "d"), ("d", "b")])
    with pytest.raises(GraphError, match=r"graph has a cycle: (a -> b -> a|b -> a -> b)$"):
        CausalGraph(named("a", "b"), [("a", "b"), ("b", "a")])


def test_every_order_of_the_edges_gives_the_same_graph(diamond: CausalGraph):
    for edges in itertools.permutations(EDGES):
        graph = CausalGraph(named(*NAMES), edges)
        assert (graph, hash(graph), graph.topological_order) == (diamond, hash(diamond), diamond.topological_order)
    # repeated edges and edges as lists, which is how a saved config returns them
    assert CausalGraph(named(*NAMES), [list(edge) for edge in (*EDGES, EDGES[0])]) == diamond


@pytest.mark.parametrize(
    "change",
    [
        {"name": "g"},
        {"kind": "binary"},
        {"loc": 0.5},
        {"scale": 2.0},
        {"low": -1.0},
        {"high": 1.0},
        {"dim": 3},
        {"kind": "categorical", "num_classes": 4},
    ],
    ids=lambda change: next(iter(change)),
)
def test_graphs_differ_where_a_variable_does(diamond: CausalGraph, change: dict):
    position = NAMES.index("f")  # without edges, so that even another name leaves a valid graph
    variables = list(diamond.variables)
    variables[position] = replace(variables[position], **change)
    assert CausalGraph(variables, EDGES) != diamond


def test_graphs_differ_by_edges_and_by_the_order_of_variables(diamond: CausalGraph):
    assert CausalGraph(named(*NAMES), EDGES[1:]) != diamond
    # the order of variables is the order of label columns and of latent blocks
    assert CausalGraph(named(*sorted(NAMES)), EDGES) != diamond
    assert diamond != "diamond"


def test_topological_order_breaks_ties_by_declaration(diamond: CausalGraph):
    assert diamond.topological_order == ("f", "a", "b", "c", "d", "e")
    assert CausalGraph(named("c", "a", "b")).topological_order == ("c", "a", "b")


def test_relatives(diamond: CausalGraph):
    assert diamond.parents("d") == ("b", "c")
    assert diamond.children("a") == ("b", "c")
    assert diamond.roots == ("f", "a")
    assert diamond.ancestors("e") == ("a", "b", "c", "d")
    assert diamond.descendants("b") == ("d", "e")
    assert diamond.ancestors("a") == diamond.descendants("f") == ()
    assert diamond.descendants("b", "d") == ("e",)
    assert diamond.descendants("f", "c", "b") == ("d", "e")
    assert diamond.ancestors("b", "c") == ("a",)


@pytest.mark.parametrize("seed", range(25))
def test_random_graphs_agree_with_networkx(seed: int):
    graph = random_graph(seed)
    reference = nx.DiGraph()
    reference.add_nodes_from(graph.names)
    reference.add_edges_from([(cause, effect) for cause, effect in graph.edges])
    place = {name: i for i, name in enumerate(graph.topological_order)}
    assert sorted(place) == sorted(graph.names)
    assert all(place[cause] < place[effect] for cause, effect in graph.edges)
    for name in graph.names:
        assert set(graph.ancestors(name)) == nx.ancestors(reference, name)
        assert set(graph.descendants(name)) == nx.descendants(reference, name)
        assert list(graph.descendants(name)) == sorted(graph.descendants(name), key=place.__getitem__)
    assert nx.utils.graphs_equal(graph.to_networkx(), reference)
    assert CausalGraph.from_adjacency(graph.names, graph.adjacency()) == graph
    assert CausalGraph.from_dict(json.loads(json.dumps(graph.to_dict()))) == graph


def test_rows_of_the_adjacency_are_causes():
    graph = CausalGraph.from_adjacency(["first", "second"], [[0, 1], [0, 0]])
    assert graph.edges == (("first", "second"),)
    assert graph.children("first") == ("second",)
    assert graph.adjacency() == [[0, 1], [0, 0]]


def test_json_keeps_units_kinds_and_edges(tiny_graph: Callable[[], CausalGraph]):
    graph = tiny_graph()
    again = CausalGraph.from_dict(json.loads(json.dumps(graph.to_dict())))
    assert again == graph and hash(again) == hash(graph)
    assert (again["intensity"].loc, again["intensity"].scale, again["intensity"].low) == (160.0, 96.0, 64.0)
    assert (again["digit"].kind, again["digit"].num_classes, again["digit"].dim) == ("categorical", 3, 3)
    assert again.edges == graph.edges


def test_slices_tile_the_latents_in_declaration_order():
    graph = CausalGraph(
        [Variable("x", dim=2), Variable("k", "categorical", num_classes=5, dim=3), Variable("y", dim=1)], [("y", "x")]
    )
    assert graph.slices == {"x": slice(0, 2), "k": slice(2, 7), "y": slice(7, 8)}
    assert graph.dim == 8


def test_mutilation_cuts_the_edges_into_a_variable(diamond: CausalGraph):
    cut = diamond.mutilate(["d", "f"])
    assert cut.edges == (("d", "e"), ("a", "b"), ("a", "c"))
    assert cut.variables == diamond.variables
    assert diamond.mutilate(NAMES).edges == ()
    assert diamond.mutilate([]) == diamond
    assert len(diamond.edges) == 5, "the graph itself stays as it is"


def test_changing_a_networkx_copy_changes_nothing(diamond: CausalGraph):
    diamond.to_networkx().add_edge("e", "a")
    assert diamond.descendants("e") == ()


def test_indexing(diamond: CausalGraph):
    assert diamond["a"] is diamond.variables[3]
    assert diamond.index("a") == 3
    assert "a -> b" in repr(diamond) and "no edges" in repr(CausalGraph(named("a")))
    for call in (diamond.index, diamond.parents, diamond.children, diamond.ancestors, diamond.descendants):
        with pytest.raises(GraphError, match=r"unknown variable 'z'; known: d, b, f, a, e, c"):
            call("z")
    with pytest.raises(GraphError, match="unknown variable 'z'"):
        diamond.mutilate(["z"])


@pytest.mark.parametrize(
    ("names", "edges", "message"),
    [
        ("", [], "at least one variable"),
        ("abab", [], "used more than once: a, b"),
        ("ab", [("a", "x")], r"edge a -> x names unknown \['x'\]; known: a, b"),
        ("ab", [("y", "x")], r"unknown \['y', 'x'\]"),
        ("ab", [("b", "b")], "'b' cannot cause itself"),
        ("ab", [("a", "b", "a")], "an edge is a pair"),
        ("ab", [("a",)], "an edge is a pair"),
    ],
)
def test_bad_graphs_are_refused(names: str, edges: list, message: str):
    with pytest.raises(GraphError, match=message):
        CausalGraph(named(*names), edges)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": ""}, "non-empty string"),
        ({"name": 3}, "non-empty string"),
        ({"kind": "ordinal"}, "kind of 'x' must be one of continuous, binary, categorical, got 'ordinal'"),
        ({"kind": "categorical"}, "num_classes >= 2, got None"),
        ({"kind": "categorical", "num_classes": 1}, "num_classes >= 2, got 1"),
        ({"num_classes": 3}, "'x' is continuous"),
        ({"dim": 0}, "dim of 'x' must be at least 1"),
        ({"scale": 0.0}, "scale > 0"),
        ({"scale": -1.0}, "scale > 0"),
        ({"loc": float("nan")}, "finite loc"),
        ({"scale": float("inf")}, "finite loc"),
        ({"low": 2.0, "high": 2.0}, r"low < high, got \[2.0, 2.0\]"),
    ],
)
def test_bad_variables_are_refused(arguments: dict, message: str):
    with pytest.raises(GraphError, match=message):
        Variable(**{"name": "x", **arguments})


@pytest.mark.parametrize("adjacency", [[[0, 1]], [[0, 1], [0]], [[0, 1, 0], [0, 0, 0]]])
def test_an_adjacency_of_another_size_is_refused(adjacency: list):
    with pytest.raises(GraphError, match="2 x 2 for 2 names"):
        CausalGraph.from_adjacency(["a", "b"], adjacency)


def test_graph_errors_are_value_errors():
    assert issubclass(GraphError, ValueError)
