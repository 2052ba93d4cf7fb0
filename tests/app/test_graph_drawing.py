"""The drawn graph, read back from its SVG."""

from __future__ import annotations

import random
from xml.etree import ElementTree

import pytest

from gendiff.app.graph_drawing import draw_graph
from gendiff.causal.graph import CausalGraph, GraphError, Variable
from gendiff.causal.scene_graph import CausalSceneGraph, Edge, Node

CHAIN = CausalGraph(
    [Variable(name) for name in ("a", "b", "c", "d")], [("a", "b"), ("b", "c"), ("a", "c"), ("c", "d"), ("a", "d")]
)


def parse(graph: CausalGraph | CausalSceneGraph, intervened=()) -> ElementTree.Element:
    return ElementTree.fromstring(draw_graph(graph, intervened))


def parts(svg: ElementTree.Element, kind: str) -> list[ElementTree.Element]:
    return [group for group in svg.iter("g") if kind in group.attrib["class"].split()]


def boxes(svg: ElementTree.Element) -> dict[str, tuple[float, float, float, float]]:
    """Left, top, right, bottom of each node by its name."""
    found = {}
    for node in parts(svg, "node"):
        (rect,), (text,) = node.iter("rect"), node.iter("text")
        x, y, width, height = (float(rect.attrib[key]) for key in ("x", "y", "width", "height"))
        found[text.text] = (x, y, x + width, y + height)
    return found


def random_graph(seed: int) -> CausalGraph:
    draw = random.Random(seed)
    names = [f"v{i}" + "x" * draw.randint(0, 12) for i in range(draw.randint(1, 9))]
    edges = [(p, c) for i, p in enumerate(names) for c in names[i + 1 :] if draw.random() < 0.4]
    return CausalGraph([Variable(name) for name in names], edges)


@pytest.mark.parametrize("seed", range(20))
def test_causes_stand_above_effects_and_nothing_overlaps(seed):
    graph = random_graph(seed)
    svg = parse(graph)
    placed = boxes(svg)
    assert set(placed) == set(graph.names)
    assert len(parts(svg, "edge")) == len(graph.edges)
    assert all(placed[cause][3] < placed[effect][1] for cause, effect in graph.edges)
    for first in placed:
        for second in set(placed) - {first}:
            same_row = placed[first][1] == placed[second][1]
            assert not same_row or placed[first][2] < placed[second][0] or placed[second][2] < placed[first][0]


@pytest.mark.parametrize("seed", range(20))
def test_the_drawing_fits_its_frame(seed):
    svg = parse(random_graph(seed))
    left, top, width, height = map(float, svg.attrib["viewBox"].split())
    assert all(
        left <= x0 and top <= y0 and x1 <= left + width and y1 <= top + height for x0, y0, x1, y1 in boxes(svg).values()
    )


def test_no_two_arrows_end_in_one_point():
    heads = [path.attrib["d"] for edge in parts(parse(CHAIN), "edge") for path in list(edge)[1:]]
    assert len(heads) == len(CHAIN.edges) == len(set(heads))


def test_an_intervention_cuts_what_comes_in_and_marks_what_follows():
    svg = parse(CHAIN, ["c"])
    classes = {node.find("text").text: node.attrib["class"].split()[1:] for node in parts(svg, "node")}
    assert classes == {"a": [], "b": [], "c": ["set"], "d": ["follows"]}
    styles = dict(zip(CHAIN.edges, (edge.attrib["class"].split()[1:] for edge in parts(svg, "edge")), strict=True))
    assert styles == {("a", "b"): [], ("a", "c"): ["cut"], ("a", "d"): [], ("b", "c"): ["cut"], ("c", "d"): ["carries"]}
    assert "set by hand: c" in svg.attrib["aria-label"]


def test_a_joint_intervention_stops_at_the_second_variable():
    svg = parse(CausalGraph([Variable(name) for name in "abc"], [("a", "b"), ("b", "c")]), ["a", "b"])
    classes = [node.attrib["class"].split()[1:] for node in parts(svg, "node")]
    assert classes == [["set"], ["set"], ["follows"]]


def test_an_edge_that_skips_a_layer_goes_round_it():
    svg = parse(CHAIN)
    styles = dict(zip(CHAIN.edges, parts(svg, "edge"), strict=True))
    path = styles["a", "c"].find("path").attrib["d"]
    middle = float(path.split("S")[0].split()[-2])
    assert middle > boxes(svg)["b"][2]


def test_names_are_escaped():
    svg = parse(CausalGraph([Variable("<b>&"), Variable('"q"')], [("<b>&", '"q"')]))
    assert set(boxes(svg)) == {"<b>&", '"q"'}
    assert '<b>& causes "q"' in svg.attrib["aria-label"]


def test_an_unknown_variable_is_refused():
    with pytest.raises(GraphError, match="unknown variable 'z'"):
        draw_graph(CHAIN, ["z"])


SCENE = CausalSceneGraph.from_prompt("a red ball on a small mirror")


def scene_classes(svg: ElementTree.Element) -> dict[str, list[str]]:
    return {node.find("text").text: node.attrib["class"].split()[1:] for node in parts(svg, "node")}


def test_the_rows_of_a_scene_are_its_hops():
    svg = parse(SCENE)
    placed, hops = boxes(svg), SCENE.hops()
    rows = sorted({box[1] for box in placed.values()})
    assert {name: rows.index(box[1]) for name, box in placed.items()} == hops
    assert scene_classes(svg) == {name: ["implied"] if hop else [] for name, hop in hops.items()}
    assert len(parts(svg, "edge")) == len(SCENE.edges)
    assert "implied: reflection, reflection_extent" in svg.attrib["aria-label"]
    top = float(svg.attrib["viewBox"].split()[1])
    assert top < min(box[1] for box in placed.values()) - 20, "no room for arcs"


def test_arcs_of_a_scene_leave_and_arrive_above_their_row():
    svg = parse(SCENE)
    placed, hops = boxes(svg), SCENE.hops()
    for (cause, effect), edge in zip(SCENE.causal.edges, parts(svg, "edge"), strict=True):
        start = [float(number) for number in edge.find("path").attrib["d"][1:].split("C")[0].split()]
        left, top, right, bottom = placed[cause]
        assert left <= start[0] <= right
        assert start[1] == (top if hops[cause] == hops[effect] else bottom)
    heads = [list(edge)[1].attrib["d"] for edge in parts(svg, "edge")]
    assert len(set(heads)) == len(SCENE.edges)


def test_an_intervention_on_a_scene():
    svg = parse(SCENE, ["reflection"])
    assert scene_classes(svg)["reflection"] == ["set"]
    assert scene_classes(svg)["reflection_extent"] == ["implied", "follows"]
    styles = zip(SCENE.causal.edges, (edge.attrib["class"].split()[1:] for edge in parts(svg, "edge")), strict=True)
    cut = {edge for edge, style in styles if style == ["cut"]}
    assert cut == {(cause, "reflection") for cause in ("ball", "on", "mirror")}
    assert len(parts(parse(SCENE.do("reflection", "absent")), "edge")) == len(SCENE.edges) - 3
    assert len(parts(parse(SCENE, ["on"]), "cut")) == 2


def test_an_edge_up_to_a_stated_effect_goes_round():
    nodes = [
        Node("a", "object", "a"),
        Node("b", "effect", "b", False),
        Node("c", "effect", "c"),
        Node("wide", "object", "w"),
    ]
    graph = CausalSceneGraph(nodes, [Edge("a", "b"), Edge("b", "c")])
    svg = parse(graph)
    up = dict(zip(graph.causal.edges, parts(svg, "edge"), strict=True))["b", "c"].find("path").attrib["d"]
    side = float(up.split("V")[0].split()[-2])
    assert side > max(box[2] for box in boxes(svg).values())
    left, _, width, _ = map(float, svg.attrib["viewBox"].split())
    assert side <= left + width
