"""Template grammars: prompts to graphs and back, counterfactuals, and errors that name the word."""

from __future__ import annotations

import copy
import json

import pytest

from gendiff.causal.graph import GraphError
from gendiff.causal.scene_features import CooccurrenceTable
from gendiff.causal.scene_grammar import TemplateGrammar
from gendiff.causal.scene_graph import CausalSceneGraph

SHADOWS = {
    "template": "a {height} {colour} pole, {elevation} sun on the {side}, a plant {plant}",
    "slots": {
        "height": {"values": ["short", "tall"], "kind": "attribute"},
        "colour": {"values": ["red", "green", "blue", "yellow"], "kind": "attribute"},
        "elevation": {"values": ["low", "high"], "kind": "light"},
        "side": {"values": ["left", "right"], "kind": "light"},
        "plant": {"values": ["near left", "near right", "far left", "far right"], "kind": "object"},
    },
    "implied": [
        {
            "id": "plant_lit",
            "kind": "effect",
            "effect": "shadow",
            "parents": ["shadow_dir", "shadow_len", "plant"],
            "text": "the plant is dark where the shadow covers it",
        },
        {
            "id": "shadow_dir",
            "kind": "effect",
            "effect": "shadow",
            "parents": ["side"],
            "text": "the shadow falls on the other side of the sun",
            "absent": "the shadow falls towards the sun",
        },
        {
            "id": "shadow_len",
            "kind": "effect",
            "effect": "shadow",
            "parents": ["height", "elevation"],
            "text": "the lower the sun and the taller the pole, the longer the shadow",
        },
    ],
    "contrast": "side",
    "swap": None,
}
GRAMMAR = TemplateGrammar(SHADOWS)
PROMPT = "a tall red pole, low sun on the left, a plant near right"
SHAPES = {
    "template": "a {top} above a {bottom}",
    "slots": {"top": {"values": ["circle", "square", "ring"]}, "bottom": {"values": ["circle", "square", "ring"]}},
    "swap": ["top", "bottom"],
}


def test_a_prompt_becomes_its_graph():
    graph = GRAMMAR.parse(PROMPT)
    assert {node.id: node.value for node in graph.nodes if node.explicit} == {
        "height": "tall",
        "colour": "red",
        "elevation": "low",
        "side": "left",
        "plant": "near right",
    }
    assert graph.hops() == dict.fromkeys(SHADOWS["slots"], 0) | {"shadow_dir": 1, "shadow_len": 1, "plant_lit": 2}
    assert graph.parents("plant_lit") == ("plant", "shadow_dir", "shadow_len")
    assert graph.parents("shadow_len") == ("height", "elevation")
    assert (graph["side"].kind, graph["colour"].kind, graph["plant_lit"].effect) == ("light", "attribute", "shadow")
    for node in graph.nodes:
        assert node.span is None if not node.explicit else PROMPT[slice(*node.span)] == node.value
    assert CausalSceneGraph.from_json(graph.to_json()) == graph == CausalSceneGraph.from_prompt(PROMPT, GRAMMAR)


def test_every_prompt_is_read_back_and_every_counterfactual_comes_home():
    prompts = GRAMMAR.prompts()
    assert len(prompts) == len(set(prompts)) == 128
    assert prompts[0] == "a short red pole, low sun on the left, a plant near left"
    for prompt in prompts:
        values = GRAMMAR.values(prompt)
        assert GRAMMAR.fill(values) == prompt
        graph = GRAMMAR.parse(prompt)
        for slot, entry in SHADOWS["slots"].items():
            other = GRAMMAR.counterfactual(prompt, slot)
            place = entry["values"].index(values[slot])
            assert GRAMMAR.values(other) == values | {slot: entry["values"][(place + 1) % len(entry["values"])]}
            assert graph.counterfactual_text(slot) == other
        assert GRAMMAR.counterfactual(GRAMMAR.counterfactual(prompt)) == prompt


def test_the_words_of_interventions_on_a_template():
    graph = GRAMMAR.parse(PROMPT)
    assert graph.counterfactual_text("colour", "blue") == PROMPT.replace("red", "blue")
    assert graph.counterfactual_text("shadow_dir") == f"{PROMPT}, the shadow falls towards the sun"
    assert graph.counterfactual_text("plant_lit") == f"{PROMPT}, without a shadow"
    assert graph.counterfactual_text("plant_lit", "present").endswith("the plant is dark where the shadow covers it")
    both = graph.do("side", "right").do("height", "short")
    assert both.text() == "a short red pole, low sun on the right, a plant near right"
    assert both.do("side", "left").do("height", "tall").text() == PROMPT
    with pytest.raises(GraphError, match="slot 'side' of the template takes left, right, got 'up'"):
        graph.do("side", "up")


def test_case_spaces_and_a_full_stop_do_not_matter():
    assert GRAMMAR.values("A Tall  RED pole, low sun on the left, a plant near  right. ") == GRAMMAR.values(PROMPT)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (
            PROMPT.replace("red", "purple"),
            r"'purple' in .* does not fit slot 'colour'; allowed: red, green, blue, yell",
        ),
        (PROMPT.replace("left", "lefty"), "'lefty' in .* does not fit slot 'side'; allowed: left, right"),
        (PROMPT.replace("near right", "behind"), "'behind' in .* slot 'plant'; allowed: near left, near right"),
        (PROMPT.replace("pole", "tree"), "' pole, ' expected, got ' tree, low"),
        (PROMPT[:36], "', a plant ' expected, got the end"),
        (f"{PROMPT} and a dog", "goes on after the template .*' and a dog'"),
        ("a dog", "'dog' in prompt 'a dog' does not fit slot 'height'; allowed: short, tall"),
        ("", "prompt must be a non-empty string"),
    ],
)
def test_a_prompt_that_does_not_fit_is_told_where(prompt, message):
    with pytest.raises(ValueError, match=message):
        GRAMMAR.parse(prompt)


def test_values_that_do_not_fit_are_refused():
    values = GRAMMAR.values(PROMPT)
    with pytest.raises(ValueError, match="'purple' does not fit slot 'colour'; allowed: red, green, blue, yellow"):
        GRAMMAR.fill(values | {"colour": "purple"})
    with pytest.raises(ValueError, match="unknown slot 'size'; slots: height, colour"):
        GRAMMAR.fill(values | {"size": "big"})
    with pytest.raises(ValueError, match="slot 'plant' has no value"):
        GRAMMAR.fill({name: word for name, word in values.items() if name != "plant"})
    with pytest.raises(ValueError, match="slot names unknown slot 'size'"):
        GRAMMAR.counterfactual(PROMPT, "size")


def test_a_swap_exchanges_two_words():
    grammar = TemplateGrammar(SHAPES)
    assert grammar.counterfactual("a ring above a square") == "a square above a ring"
    assert grammar.counterfactual("a ring above a square", "bottom") == "a ring above a circle"
    # "circle above circle" would be its own counterfactual, so it is out.
    assert grammar.counterfactual("a ring above a square", "top") == "a circle above a square"
    assert grammar.counterfactual("a circle above a square", "top") == "a ring above a square"
    assert grammar.parse("a circle above a square").counterfactual_text("top") == "a ring above a square"
    assert len(grammar.prompts()) == 6
    assert all(grammar.counterfactual(grammar.counterfactual(prompt)) == prompt for prompt in grammar.prompts())
    with pytest.raises(ValueError, match="'top' and 'bottom' must differ, both are 'ring'"):
        grammar.parse("a ring above a ring")


def test_equal_words_may_be_let_in():
    grammar = TemplateGrammar({**SHAPES, "distinct": []})
    assert len(grammar.prompts()) == 9
    with pytest.raises(ValueError, match="changes nothing in 'a ring above a ring'"):
        grammar.counterfactual("a ring above a ring")


def test_a_slot_may_stand_twice():
    grammar = TemplateGrammar(
        {
            "template": "a {colour} ball, a {colour} cube",
            "slots": {"colour": {"values": ["red", "blue"]}},
            "contrast": "colour",
        }
    )
    assert grammar.counterfactual("a red ball, a red cube") == "a blue ball, a blue cube"
    assert grammar.parse("a red ball, a red cube").counterfactual_text("colour") == "a blue ball, a blue cube"
    with pytest.raises(ValueError, match=r"'blue' in .* does not fit slot 'colour'; allowed: red"):
        grammar.parse("a red ball, a blue cube")


@pytest.mark.parametrize("data", [SHADOWS, SHAPES])
def test_json_gives_the_same_grammar(data):
    grammar = TemplateGrammar(data)
    again = TemplateGrammar(json.loads(json.dumps(grammar.to_dict())))
    assert (again, again.to_dict(), hash(again)) == (grammar, grammar.to_dict(), hash(grammar))
    prompt = grammar.prompts()[0]
    assert again.parse(prompt) == grammar.parse(prompt)


def test_what_training_never_showed_is_new():
    train = [prompt for prompt in GRAMMAR.prompts() if not ("red" in prompt and "sun on the right" in prompt)]
    table = CooccurrenceTable.from_values(GRAMMAR.values(prompt) for prompt in train)
    assert table == CooccurrenceTable.from_graphs(GRAMMAR.parse(prompt) for prompt in train)
    assert (table.count("colour=red", "side=right"), table.count("side=left", "colour=red")) == (0, 16)
    seen, unseen = (GRAMMAR.parse(prompt).features(table)[14] for prompt in (PROMPT, GRAMMAR.counterfactual(PROMPT)))
    assert unseen > seen + 0.08


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"template": "a ball"}, ValueError, "at least one {slot}"),
        ({"template": 3}, ValueError, "template must be a string"),
        ({"template": SHADOWS["template"] + " {size}"}, ValueError, "slots must be those of the template"),
        ({"template": SHADOWS["template"].replace("{side}", "{side:>9}")}, ValueError, "plain name in braces"),
        ({"contrast": "size"}, ValueError, "contrast names unknown slot 'size'"),
        ({"swap": ["side", "height"]}, ValueError, "two slots with the same values"),
        ({"swap": ["side"]}, ValueError, "swap must name two different slots"),
        ({"colours": []}, ValueError, "has no entry 'colours'"),
        ({"implied": [{"id": "x", "parents": [], "text": "x"}]}, GraphError, "'x' has no parents: implied nodes need"),
        ({"implied": [{"id": "x", "parents": ["size"], "text": "x"}]}, GraphError, "size"),
        ({"implied": [{"id": "x", "parents": ["x"], "text": "x"}]}, GraphError, "'x' cannot cause itself"),
        ({"implied": [{"id": "side", "parents": ["height"], "text": "x"}]}, GraphError, "more than once: side"),
        ({"implied": [{"id": "x", "parents": ["side"], "text": "x", "hops": 1}]}, ValueError, "no entry 'hops'"),
        ({"implied": [{"id": "x", "parents": ["side"], "text": "x", "kind": "object"}]}, GraphError, "kind 'effect'"),
        ({"implied": [{"id": "x", "parents": ["side"], "text": "x", "effect": "magic"}]}, GraphError, "one of shadow"),
    ],
)
def test_bad_data_is_refused(change, error, message):
    with pytest.raises(error, match=message):
        TemplateGrammar({**SHADOWS, **change})


@pytest.mark.parametrize(
    ("slot", "message"),
    [
        ({"values": []}, "values of slot 'side' must be a list of non-empty strings"),
        ({"values": ["left", "Left"]}, "values of slot 'side' must differ"),
        ({"values": ["left"], "kind": "effect"}, "kind of slot 'side' must be one of"),
        (["left"], "slot 'side' must be a mapping"),
    ],
)
def test_a_bad_slot_is_refused(slot, message):
    data = copy.deepcopy(SHADOWS)
    data["slots"]["side"] = slot
    with pytest.raises(ValueError, match=message):
        TemplateGrammar(data)


def test_an_ambiguous_template_is_refused():
    words = {"values": ["big", "big big"]}
    with pytest.raises(ValueError, match="ambiguous: 'a big big big' comes of more than one"):
        TemplateGrammar({"template": "a {one} {two}", "slots": {"one": words, "two": words}})


def test_without_a_contrast_the_slot_must_be_given():
    grammar = TemplateGrammar({**SHADOWS, "contrast": None})
    with pytest.raises(ValueError, match="slot must be given, this grammar has no contrast"):
        grammar.counterfactual(PROMPT)
    single = TemplateGrammar({"template": "a {colour} ball", "slots": {"colour": {"values": ["red"]}}})
    with pytest.raises(ValueError, match="slot 'colour' takes no other word than 'red'"):
        single.counterfactual("a red ball", "colour")
