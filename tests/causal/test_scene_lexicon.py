"""Free English prompts: what is read from them, what follows, and the words of their counterfactuals."""

from __future__ import annotations

import random

import pytest

from gendiff.causal.scene_graph import CausalSceneGraph
from gendiff.causal.scene_lexicon import GrammarParser
from gendiff.causal.scene_words import ACTIONS, ATTRIBUTES, BREAKS, MENTIONS, NOUNS, PLACES, RELATIONS

PROMPTS = [
    "a red ball on a small mirror",
    "A red ball on a small mirror.",
    "a person is close to the water and in the sand",
    "a bird eats a snake",
    "there is more dirt than empty space in the jar",
    "a large wooden ball in a jar of water",
    "a stone and a cork in the water",
    "an ice cube in the hot sun",
    "a tall red pole on the ground, low sun on the left",
    "a cube under a lamp, without a shadow",
    "on a table, a blue cone",
    "a red ball and a blue cube in front of a large mirror",
    "a wooden boat floats on a lake",
    "Photo of a shiny dragon flying over the sea!",
]


def read(prompt: str) -> CausalSceneGraph:
    return CausalSceneGraph.from_prompt(prompt)


def hops(prompt: str) -> dict[str, int]:
    return read(prompt).hops()


def implied(prompt: str) -> dict[str, tuple[str, ...]]:
    """Parents of each implied node."""
    graph = read(prompt)
    return {node.id: graph.parents(node.id) for node in graph.implied()}


def test_the_example_has_exactly_its_hops():
    table = {"ball": 0, "red": 0, "mirror": 0, "small": 0, "on": 0, "reflection": 1, "reflection_extent": 2}
    graph = read("a red ball on a small mirror")
    assert graph.hops() == table
    assert set(graph.parents("reflection")) == {"ball", "mirror", "on"}
    assert set(graph.parents("reflection_extent")) == {"reflection", "small"}
    assert {node.id: node.kind for node in graph.nodes} == {
        "ball": "object",
        "mirror": "object",
        "red": "attribute",
        "small": "attribute",
        "on": "relation",
        "reflection": "effect",
        "reflection_extent": "effect",
    }
    mechanisms = {(edge.src, edge.dst): edge.mechanism for edge in graph.edges}
    assert mechanisms["ball", "on"] == "spatial"
    assert mechanisms["mirror", "on"] == "spatial:target"
    assert mechanisms["red", "ball"] == mechanisms["small", "mirror"] == "attribute"


@pytest.mark.parametrize("prompt", PROMPTS)
def test_reading_is_deterministic_and_says_the_prompt_again(prompt):
    graph = read(prompt)
    assert graph == GrammarParser().parse(prompt) == CausalSceneGraph.from_json(graph.to_json())
    assert graph.text() == prompt
    for node in graph.nodes:
        if node.span is not None and node.value is not None and node.kind != "effect":
            assert prompt[slice(*node.span)].lower() == node.value
        if node.kind == "effect" or node.alternatives:
            other = graph.counterfactual_text(node.id)
            assert other != prompt
            # A change that stands in the words is read back from them.
            assert read(other) != graph


@pytest.mark.parametrize(
    ("prompt", "effects"),
    [
        (
            "a red ball in front of a mirror",
            {"reflection": ("ball", "in_front_of", "mirror"), "reflection_extent": ("mirror", "reflection")},
        ),
        (
            "a mirror behind a vase",
            {"reflection": ("mirror", "behind", "vase"), "reflection_extent": ("mirror", "reflection")},
        ),
        ("a red ball behind a mirror", {}),
        ("a pole under the sun", {"shadow": ("pole", "sun")}),
        ("a pole on the ground, under a lamp", {"shadow": ("pole", "ground", "lamp")}),
        ("a pole on the ground", {}),
        (
            "a wooden ball in a jar of water",
            {"buoyancy": ("ball", "wooden", "in", "jar", "water"), "displacement": ("buoyancy",)},
        ),
        ("a large stone in water", {"buoyancy": ("stone", "in", "water"), "displacement": ("large", "buoyancy")}),
        ("a wooden ball near the water", {}),
        ("a ball in the water", {}),
        ("a wooden ball in a jar", {}),
        ("ice near a fire", {"shadow": ("ice", "fire"), "melting": ("ice", "fire")}),
        ("an ice cube on a hot plate", {"melting": ("cube", "ice", "hot")}),
        ("an ice cube under a lamp", {"shadow": ("cube", "lamp")}),
        ("a bird eats a snake", {}),
    ],
)
def test_what_follows_from_a_scene(prompt, effects):
    found = implied(prompt)
    graph = read(prompt)
    assert {name: set(parents) for name, parents in found.items()} == {n: set(p) for n, p in effects.items()}
    assert all(graph.hops()[name] == (2 if set(parents) & set(effects) else 1) for name, parents in found.items())


@pytest.mark.parametrize(
    ("thing", "floats"),
    [("wooden ball", True), ("stone ball", False), ("metal cube", False), ("cork", True), ("brick", False)],
)
def test_material_decides_what_floats(thing, floats):
    graph = read(f"a {thing} in the water")
    word = thing.split()[-1]
    yes, no = f"the {word} floats", f"the {word} sinks"
    assert (graph["buoyancy"].text, graph["buoyancy"].alternatives) == ((yes, (no,)) if floats else (no, (yes,)))
    assert graph.counterfactual_text("buoyancy") == f"a {thing} in the water, {no if floats else yes}"


@pytest.mark.parametrize(
    ("prompt", "id", "value", "text"),
    [
        ("a red ball on a small mirror", "small", None, "a red ball on a large mirror"),
        ("a red ball on a small mirror", "red", "orange", "an orange ball on a small mirror"),
        ("a red ball on a small mirror", "reflection", None, "a red ball on a small mirror, without a reflection"),
        ("a cube to the left of a ball", "left_of", None, "a cube to the right of a ball"),
        ("a low sun on the left", "left", None, "a low sun on the right"),
        ("a wooden boat floats on a lake", "buoyancy", None, "a wooden boat sinks on a lake"),
        ("a cat with its shadow under the sun", "shadow", None, "a cat with no shadow under the sun"),
        ("An ice cube near a fire.", "ice", None, "A stone cube near a fire."),
        ("An ice cube near a fire.", "melting", None, "An ice cube near a fire, the cube stays frozen."),
    ],
)
def test_the_words_of_a_counterfactual(prompt, id, value, text):
    assert read(prompt).counterfactual_text(id, value) == text


def test_a_stated_effect_is_explicit_and_a_denied_one_has_no_causes():
    stated = read("a wooden boat floats on a lake")
    assert (stated["buoyancy"].explicit, stated.hops()["buoyancy"], stated.hops()["displacement"]) == (True, 0, 1)
    assert set(stated.parents("buoyancy")) == {"boat", "wooden", "on", "lake"}
    plain = read("a cube under a lamp")
    denied = read(plain.counterfactual_text("shadow"))
    assert plain.parents("shadow") == ("cube", "lamp")
    assert (denied["shadow"].value, denied["shadow"].explicit, denied.parents("shadow")) == ("absent", True, ())
    assert denied.counterfactual_text("shadow") == "a cube under a lamp, the cube casts a shadow away from the light"
    assert read("a cube, without a shadow").counterfactual_text("shadow") == "a cube, with a shadow"


def test_of_several_things_each_has_its_own_effect():
    graph = read("a red ball and a red cube in front of a large mirror")
    assert [node.id for node in graph.implied()] == [
        "reflection_ball",
        "reflection_extent_ball",
        "reflection_cube",
        "reflection_extent_cube",
    ]
    assert set(graph.parents("reflection_cube")) == {"cube", "mirror", "in_front_of"}
    assert graph.parents("cube") == ("red_2",)
    assert graph.counterfactual_text("reflection_cube").endswith(", without a reflection of the cube")


def test_after_and_a_relation_keeps_its_subject():
    graph = read("a person is close to the water and in the sand")
    assert graph.parents("near") == ("person", "water")
    assert graph.parents("in") == ("person", "sand")


def test_who_does_what_to_whom():
    def roles(prompt: str) -> dict[str, str]:
        return {edge.mechanism: edge.src for edge in read(prompt).edges}

    assert roles("a bird eats a snake") == {"action": "bird", "action:target": "snake"}
    assert roles("a snake eats a bird") == {"action": "snake", "action:target": "bird"}
    assert roles("on a table, a cone") == {"spatial": "cone", "spatial:target": "table"}


def test_words_outside_the_lexicon():
    graph = read("a photo of two shiny dragons flying over the sea")
    assert {node.id: node.kind for node in graph.nodes} == {
        "dragons": "object",
        "shiny": "attribute",
        "above": "relation",
        "sea": "environment",
    }
    assert graph.parents("dragons") == ("shiny",)


@pytest.mark.parametrize("prompt", ["and the of", "...", "very", ""])
def test_a_prompt_without_a_thing_is_refused(prompt):
    with pytest.raises(ValueError, match=r"names no thing|non-empty string"):
        GrammarParser().parse(prompt)


@pytest.mark.parametrize("seed", range(200))
def test_any_run_of_known_words_is_read_or_refused_as_a_whole(seed):
    draw = random.Random(seed)
    known = [*NOUNS, *RELATIONS, *PLACES, *ACTIONS, *MENTIONS, *BREAKS, *(w for ws in ATTRIBUTES.values() for w in ws)]
    often = ["a", "the", "and", "without", ",", ".", "red", "red", "red_2", "ball", "mirror", "on", "in", "unheard"]
    prompt = " ".join(draw.choice(known if draw.random() < 0.5 else often) for _ in range(draw.randint(1, 14)))
    try:
        graph = read(prompt)
    except ValueError as error:
        assert "names no thing" in str(error)
        return
    assert graph.text() == prompt
    assert CausalSceneGraph.from_json(graph.to_json()) == graph
    for node in graph.nodes:
        if node.kind == "effect" or node.alternatives:
            assert graph.counterfactual_text(node.id) != prompt
