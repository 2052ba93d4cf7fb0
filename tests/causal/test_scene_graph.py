"""Causal scene graphs: hops, interventions, words of a counterfactual, features, JSON, and what is refused."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest
import torch

from gendiff.causal.graph import GraphError
from gendiff.causal.scene_features import FEATURES, CooccurrenceTable, scene_features, scene_terms
from gendiff.causal.scene_graph import CausalSceneGraph, Edge, Node

PROMPT = "a red ball on a small mirror"


def word(id: str, kind: str, text: str, *alternatives: str) -> Node:
    start = PROMPT.index(text)
    return Node(id, kind, text, span=(start, start + len(text)), value=text, alternatives=alternatives)


def effect(id: str, text: str = "it is there", kind: str = "other", **rest) -> Node:
    return Node(id, "effect", text, explicit=False, effect=kind, **rest)


NODES = (
    word("ball", "object", "ball"),
    word("red", "attribute", "red", "orange", "blue"),
    word("mirror", "object", "mirror"),
    word("small", "attribute", "small", "large"),
    word("on", "relation", "on", "under"),
    effect("reflection", "the mirror shows the ball", "reflection"),
    effect("extent", "the reflection lies inside", "reflection", alternatives=("the reflection reaches out",)),
)
EDGES = (
    Edge("ball", "on", "spatial"),
    Edge("mirror", "on", "spatial:target"),
    Edge("ball", "reflection"),
    Edge("mirror", "reflection"),
    Edge("on", "reflection", strength=0.5),
    Edge("reflection", "extent"),
    Edge("small", "extent"),
)
GRAPH = CausalSceneGraph(NODES, EDGES, PROMPT)


def random_graph(seed: int) -> CausalSceneGraph:
    """Nodes in random order; roots are explicit, others at random."""
    draw = random.Random(seed)
    names = [f"n{i}" for i in range(draw.randint(2, 9))]
    edges = [Edge(a, b) for i, a in enumerate(names) for b in names[i + 1 :] if draw.random() < 0.4]
    caused = {edge.dst for edge in edges}
    nodes = [
        effect(name) if name in caused and draw.random() < 0.7 else Node(name, "object", f"the {name}", value=name)
        for name in names
    ]
    draw.shuffle(nodes)
    draw.shuffle(edges)
    return CausalSceneGraph(nodes, edges, " ".join(names))


def longest_chain(graph: CausalSceneGraph, id: str) -> int:
    """Hop by its meaning: the most implied nodes on any chain of causes that ends in `id` and has no explicit one."""
    if graph[id].explicit:
        return 0
    return 1 + max(longest_chain(graph, edge.src) for edge in graph.edges if edge.dst == id)


def test_hops_of_the_example():
    assert GRAPH.hops() == {"ball": 0, "red": 0, "mirror": 0, "small": 0, "on": 0, "reflection": 1, "extent": 2}
    assert [node.id for node in GRAPH.implied()] == ["reflection", "extent"]
    assert GRAPH.parents("reflection") == ("ball", "mirror", "on")
    assert GRAPH.validate() is GRAPH


@pytest.mark.parametrize("seed", range(20))
def test_hops_are_longest_chains_and_causes_come_first(seed):
    graph = random_graph(seed)
    assert graph.hops() == {node.id: longest_chain(graph, node.id) for node in graph.nodes}
    place = {id: i for i, id in enumerate(graph.topological())}
    assert len(place) == len(graph.nodes)
    assert all(place[edge.src] < place[edge.dst] for edge in graph.edges)


@pytest.mark.parametrize("seed", range(20))
def test_do_removes_exactly_the_incoming_edges(seed):
    graph = random_graph(seed)
    for node in graph.nodes:
        changed = graph.do(node.id, "other")
        assert set(changed.edges) == {edge for edge in graph.edges if edge.dst != node.id}
        assert changed.nodes == tuple(
            replace(n, value="other", explicit=True) if n.id == node.id else n for n in graph.nodes
        )
        assert changed.hops()[node.id] == 0
        assert changed.prompt == graph.prompt


def test_do_keeps_mechanism_and_strength():
    assert Edge("on", "reflection", strength=0.5) in GRAPH.do("on", "under").edges
    assert {edge.dst for edge in GRAPH.do("on", "under").edges} == {"reflection", "extent"}


@pytest.mark.parametrize(
    ("id", "value", "text"),
    [
        ("small", None, "a red ball on a large mirror"),
        ("red", None, "an orange ball on a small mirror"),
        ("red", "green", "a green ball on a small mirror"),
        ("on", None, "a red ball under a small mirror"),
        ("ball", "marble", "a red marble on a small mirror"),
        ("reflection", None, f"{PROMPT}, without a reflection"),
        ("reflection", 0.0, f"{PROMPT}, without a reflection"),
        ("reflection", "present", f"{PROMPT}, the mirror shows the ball"),
        ("reflection", 1, f"{PROMPT}, the mirror shows the ball"),
        ("reflection", "seen twice", f"{PROMPT}, seen twice"),
        ("extent", None, f"{PROMPT}, the reflection reaches out"),
    ],
)
def test_the_words_of_a_counterfactual(id, value, text):
    assert GRAPH.counterfactual_text(id, value) == text


def test_words_of_several_interventions_add_up():
    changed = GRAPH.do("red", "orange").do("small", "large")
    assert changed.text() == "an orange ball on a large mirror"
    assert changed.counterfactual_text("reflection") == "an orange ball on a large mirror, without a reflection"
    assert changed.do("reflection", "absent").counterfactual_text("reflection").endswith("the mirror shows the ball")
    assert GRAPH.text() == PROMPT


def test_capitals_and_the_full_stop_stay():
    prompt = "Red ball."
    graph = CausalSceneGraph(
        [Node("red", "attribute", "red", span=(0, 3), value="red"), effect("shade", kind="shadow")],
        [Edge("red", "shade")],
        prompt,
    )
    assert graph.counterfactual_text("red", "blue") == "Blue ball."
    assert graph.counterfactual_text("shade") == "Red ball, without a shadow."


@pytest.mark.parametrize("seed", range(10))
def test_json_keeps_everything(seed):
    for graph in (random_graph(seed), GRAPH, GRAPH.do("red", "blue"), GRAPH.do("reflection", 0.25)):
        again = CausalSceneGraph.from_json(graph.to_json())
        assert (again, hash(again), again.to_json()) == (graph, hash(graph), graph.to_json())
    assert GRAPH.do("red", "blue") != GRAPH


def test_json_keeps_regions_bit_for_bit():
    region = torch.rand(3, 5, generator=torch.Generator().manual_seed(0))
    graph = CausalSceneGraph([replace(NODES[0], region=region), *NODES[1:]], EDGES, PROMPT)
    again = CausalSceneGraph.from_json(graph.to_json())
    assert again == graph
    assert again["ball"].region is not None
    assert torch.equal(again["ball"].region, region)
    assert graph != GRAPH
    assert graph != CausalSceneGraph([replace(NODES[0], region=region.flip(0)), *NODES[1:]], EDGES, PROMPT)
    assert replace(NODES[0], region=torch.ones(2, 2, dtype=torch.bool)) == replace(NODES[0], region=torch.ones(2, 2))


def test_the_features_of_the_example():
    features = GRAPH.features()
    assert (features.shape, features.dtype) == ((16,), torch.float32)
    named = dict(zip(FEATURES, features.tolist(), strict=True))
    assert {name: value for name, value in named.items() if value} == {
        "explicit nodes": 5,
        "implied nodes": 2,
        "max hop": 2,
        "mean hop": pytest.approx(3 / 7),
        "reflection effects": 2,
        "explicit relations": 1,
        "words of the prompt": 7,
    }
    masked = CausalSceneGraph([replace(NODES[0], region=torch.ones(2, 2)), *NODES[1:]], EDGES, PROMPT)
    assert (masked.features() - features).tolist() == [0.0] * 15 + [1.0]


@pytest.mark.parametrize("seed", range(10))
def test_node_order_changes_no_bit_of_the_features(seed):
    draw = random.Random(seed)
    table = CooccurrenceTable({(a.text, b.text): draw.randint(0, 50) for a in NODES[:5] for b in NODES[:5]})
    nodes, edges = draw.sample(NODES, len(NODES)), draw.sample(EDGES, len(EDGES))
    assert torch.equal(CausalSceneGraph(nodes, edges, PROMPT).features(table), GRAPH.features(table))
    assert GRAPH.features(table)[14] > 0


def test_pair_novelty_is_what_the_captions_say():
    pair = CausalSceneGraph([word("red", "attribute", "red"), word("ball", "object", "ball")], (), PROMPT)
    assert scene_terms(pair) == ["red", "ball"]
    table = CooccurrenceTable.from_graphs([pair, pair, pair])
    assert table.count("ball", "red") == table.count("red", "ball") == 3
    assert scene_features(pair, table)[14] == 0.25
    assert scene_features(pair, CooccurrenceTable())[14] == 1
    assert scene_features(pair)[14] == 0
    # Ten pairs of five explicit nodes, one of which stands in three captions.
    assert GRAPH.features(table)[14].item() == pytest.approx((0.25 + 9) / 10)
    assert CooccurrenceTable.from_json(table.to_json()) == table
    assert json.loads(table.to_json()) == {"pairs": [["ball", "red", 3]]}


@pytest.mark.parametrize(
    ("nodes", "edges", "message"),
    [
        ((), (), "needs at least one"),
        ((NODES[0], NODES[0]), (), "more than once: ball"),
        (NODES, (*EDGES, Edge("extent", "ball")), r"cycle: .*reflection -> extent -> ball"),
        (NODES, (*EDGES, Edge("ball", "puddle")), r"unknown \['puddle'\]"),
        (NODES, (*EDGES, EDGES[0]), "ball -> on is given more than once"),
        (NODES, EDGES[:5], "'extent' has no parents: implied nodes need a cause"),
        ((replace(NODES[0], span=(20, 40)),), (), r"span \(20, 40\) of node 'ball' leaves the prompt of 28"),
    ],
)
def test_a_graph_that_does_not_hold_together_is_refused(nodes, edges, message):
    with pytest.raises(GraphError, match=message):
        CausalSceneGraph(nodes, edges, PROMPT)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": ""}, "id must be a non-empty string"),
        ({"kind": "thing"}, "kind of node 'ball' must be one of object"),
        ({"text": ""}, "text of node 'ball'"),
        ({"explicit": 1}, "explicit of node 'ball'"),
        ({"effect": "shadow"}, "nodes of kind 'effect' only"),
        ({"kind": "effect", "effect": "magic"}, "effect of node 'ball' must be one of shadow"),
        ({"span": (3, 3)}, "span of node 'ball'"),
        ({"span": "no"}, "span of node 'ball'"),
        ({"value": float("nan")}, "value of node 'ball'"),
        ({"value": True}, "value of node 'ball'"),
        ({"alternatives": "red"}, "alternatives of node 'ball'"),
        ({"region": torch.ones(3)}, r"region of node 'ball' must be \(H, W\)"),
        ({"region": torch.full((2, 2), 1.5)}, r"values in \[0, 1\]"),
        ({"region": torch.full((2, 2), torch.nan)}, r"values in \[0, 1\]"),
    ],
)
def test_a_bad_node_is_refused(change, message):
    with pytest.raises(GraphError, match=message):
        replace(NODES[0], **change)


def test_a_bad_edge_is_refused():
    with pytest.raises(GraphError, match="strength of a -> b must be a finite number, got inf"):
        Edge("a", "b", strength=float("inf"))
    with pytest.raises(GraphError, match="mechanism of a -> b"):
        Edge("a", "b", "")


def test_impossible_interventions_are_refused():
    with pytest.raises(GraphError, match="unknown variable 'puddle'"):
        GRAPH.do("puddle", "wet")
    with pytest.raises(GraphError, match=r"do\(red\) needs a value"):
        GRAPH.do("red", None)  # pyright: ignore[reportArgumentType]
    with pytest.raises(GraphError, match="'ball' has no known alternatives"):
        GRAPH.counterfactual_text("ball")
    with pytest.raises(GraphError, match="'ball' has no words in the prompt"):
        CausalSceneGraph([Node("ball", "object", "ball")], (), PROMPT).counterfactual_text("ball", "cube")
    overlapping = CausalSceneGraph([word("ball", "object", "red ball"), word("red", "attribute", "red")], (), PROMPT)
    with pytest.raises(GraphError, match=r"'red' and of 'ball': they overlap|'ball' and of 'red': they overlap"):
        overlapping.do("red", "blue").do("ball", "cube").text()


def test_a_parser_of_ones_own_is_validated_on_arrival():
    def parse(prompt: str) -> dict:
        return {
            "nodes": [
                {"id": "ball", "kind": "object", "text": "ball"},
                {"id": "red", "kind": "attribute", "text": "colour", "value": "red"},
                {"id": "shade", "kind": "effect", "effect": "shadow", "text": "it has a shadow", "explicit": False},
            ],
            "edges": [{"src": "ball", "dst": "shade"}],
        }

    graph = CausalSceneGraph.from_prompt(PROMPT, parse)
    assert (graph.prompt, graph["ball"].span, graph["red"].span) == (PROMPT, (6, 10), (2, 5))
    assert graph.counterfactual_text("red", "blue") == "a blue ball on a small mirror"
    assert graph.hops()["shade"] == 1


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([], "must be a mapping, got list"),
        ({"edges": []}, "lacks 'nodes'"),
        ({"nodes": "ball"}, "nodes of a scene graph must be a list"),
        ({"nodes": [{"id": "a", "kind": "object"}]}, "lacks 'text'"),
        ({"nodes": [{"id": "a", "kind": "object", "text": "a", "colour": "red"}]}, "node has no entry 'colour'"),
        ({"nodes": [{"id": "a", "kind": "effect", "text": "a", "explicit": False}]}, "implied nodes need a cause"),
        ({"nodes": [{"id": "a", "kind": "object", "text": "a"}], "edges": [{"src": "a", "dst": "b"}]}, "unknown"),
        ({"nodes": [{"id": "a", "kind": "object", "text": "a"}], "prompt": "a dog"}, "about another prompt"),
    ],
)
def test_a_parsers_wrong_answer_is_refused(answer, message):
    with pytest.raises(GraphError, match=f"the parser's answer is no scene graph: .*{message}"):
        CausalSceneGraph.from_prompt(PROMPT, lambda prompt: answer)


def test_an_empty_prompt_is_refused():
    with pytest.raises(ValueError, match="prompt must be a non-empty string, got ' '"):
        CausalSceneGraph.from_prompt(" ")


@pytest.mark.parametrize(
    "text", ['{"pairs": [["a", "b"]]}', "[]", '{"pairs": [["a", "b", -1]]}', '{"pairs": [["a", 2, 1]]}']
)
def test_a_bad_table_is_refused(text):
    with pytest.raises(ValueError, match=r"co-occurrence table must be|count of|counts must have"):
        CooccurrenceTable.from_json(text)
