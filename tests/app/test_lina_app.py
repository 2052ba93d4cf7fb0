"""LINA for people: interventions as typed and in words, the drawing of a scene graph, pictures with their verdicts."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from gendiff.app.lina_blocks import schedule_block
from gendiff.app.lina_graph import contrasted_nodes, graph_file, prompt_graph
from gendiff.app.lina_pairs import BAD, GOOD, pairs
from gendiff.app.lina_verdicts import mean_scores, verdicts
from gendiff.app.lina_words import intervention_words, parse_intervention
from gendiff.app.lina_worlds import KINDS, pick, true_picture, world_class
from gendiff.causal.scene_grammar import TemplateGrammar
from gendiff.causal.scene_graph import CausalSceneGraph
from gendiff.causal.scene_lexicon import GrammarParser
from gendiff.data import shadow_world, swap_world
from gendiff.samplers.intervention import Intervention
from gendiff.samplers.warps import WarpSpec

PROMPT = "a tall red pole, low sun on the right, a plant near left"
SPACE = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def grammar() -> TemplateGrammar:
    return TemplateGrammar(shadow_world.GRAMMAR)


@pytest.mark.parametrize(
    ("one", "words"),
    [
        (Intervention(), "none"),
        (Intervention(lam=3.0, gate=False), "none"),
        (Intervention(lam=1.25, window=(1.0, 0.4)), "contrast 1.2 while s > 0.4"),
        (Intervention(lam=2.0, window=(0.9, 0.0)), "contrast 2 while 0.9 >= s > 0"),
        (Intervention({"side": -0.5, "plant": 0.0}), "prompt -0.5 along side while s > 0.3"),
        (Intervention(warp=WarpSpec("moebius", 1.5)), "moebius warp, kappa = 1.5"),
        (Intervention(rho=0.1, warp=WarpSpec("split", 0.6)), "energy 0.1 while s > 0.3, split warp, beta = 0.6"),
    ],
)
def test_an_intervention_in_words(one, words):
    assert intervention_words(one) == words


def test_what_is_typed_is_what_is_done():
    one = parse_intervention("lam=1,kappa=2,stop=0.4,start=1,alpha.side=0.5")
    assert one == Intervention({"side": 0.5}, 1.0, window=(1.0, 0.4), warp=WarpSpec("moebius", 2.0))
    assert parse_intervention("auto") == "auto" and parse_intervention("off") == "off"
    assert parse_intervention("lam=0") == Intervention()


def nodes(svg: bytes) -> dict[str, tuple[str, float]]:
    """Class and height of each node by its words."""
    groups = [group for group in ElementTree.fromstring(svg).iter(f"{SPACE}g") if "node" in group.attrib["class"]]
    found = {}
    for group in groups:
        rectangle = group.find(f"{SPACE}rect")
        assert rectangle is not None
        found[group.findtext(f"{SPACE}text")] = (group.attrib["class"], float(rectangle.attrib["y"]))
    return found


def test_the_drawing_has_a_row_for_each_hop_and_shows_what_the_contrast_reaches(grammar):
    assert contrasted_nodes(grammar) == ["side"]
    drawn = nodes(graph_file(grammar.parse(PROMPT), contrasted_nodes(grammar)))
    rows = sorted({height for _, height in drawn.values()})
    by_row = [{name for name, (_, height) in drawn.items() if height == row} for row in rows]
    said = {"height = tall", "colour = red", "elevation = low", "side = right", "plant = near left"}
    assert by_row == [said, {"shadow_dir", "shadow_len"}, {"plant_lit"}]
    assert {name for name, (style, _) in drawn.items() if "set" in style.split()} == {"side = right"}
    assert {name for name, (style, _) in drawn.items() if "follows" in style.split()} == {"shadow_dir", "plant_lit"}
    assert {name for name, (style, _) in drawn.items() if "implied" in style} == {
        "shadow_dir",
        "shadow_len",
        "plant_lit",
    }


def test_the_names_of_rows_stand_inside_the_drawing(grammar):
    svg = ElementTree.fromstring(graph_file(grammar.parse(PROMPT)))
    left, top, width, height = (float(value) for value in svg.attrib["viewBox"].split())
    hops = [text for text in svg.iter(f"{SPACE}text") if (text.text or "").startswith("hop")]
    assert len(hops) == 3
    # Seven pixels a letter is more than any of them takes at 13 px.
    ends = [float(text.attrib["x"]) + 7 * len(text.text or "") for text in hops]
    first = min(float(box.attrib["x"]) for box in svg.iter(f"{SPACE}rect") if box.attrib.get("rx"))
    assert max(ends) < first + 30 and all(top < float(text.attrib["y"]) < top + height for text in hops)
    assert float(svg.attrib["width"]) == width and left == float(hops[0].attrib["x"]) - 2


def test_a_swap_sets_both_of_its_slots():
    grammar = TemplateGrammar(swap_world.GRAMMAR)
    drawn = nodes(graph_file(grammar.parse("a ring above a cross"), contrasted_nodes(grammar)))
    assert {name for name, (style, _) in drawn.items() if "set" in style.split()} == {"top = ring", "bottom = cross"}
    assert "follows" in drawn["order"][0].split()


def test_free_english_is_drawn_too():
    graph = GrammarParser().parse("a red ball on a small mirror")
    assert isinstance(graph, CausalSceneGraph) and "<svg" in prompt_graph(graph)
    rows = {height for _, height in nodes(graph_file(graph)).values()}
    assert len(rows) == 1 + max(graph.hops().values()) > 2


@pytest.fixture
def judged(grammar):
    """A right picture and one of noise, with their verdicts."""
    images = torch.stack([shadow_world.render(grammar.values(PROMPT)).float() / 255, torch.rand(3, 32, 32)])
    return images, verdicts("shadow-world", images, [PROMPT] * 2, grammar.parse(PROMPT))


def test_a_verdict_names_what_failed_and_scores_by_hop(judged):
    right, noise = judged[1]
    assert right.passed and right.failed == [] and right.scores == {"pap@0": 1, "pap@1": 1, "pap@2": 1, "pap_all": 1}
    assert not noise.passed and "shadow dir" in noise.failed and noise.scores["pap_all"] == 0
    assert right.as_dict() == {"passed": True, "checks": dict.fromkeys(right.checks, True), **right.scores}
    assert mean_scores([right, noise])["pap_all"] == 0.5 and mean_scores([]) == {}


@pytest.mark.parametrize("world", ["", "a-world-of-another-day"])
def test_without_a_verifier_there_is_no_verdict(world, grammar):
    assert verdicts(world, torch.rand(1, 3, 32, 32), [PROMPT], grammar.parse(PROMPT)) == []


def test_the_words_under_a_picture_have_the_colour_of_its_verdict(judged):
    images, found = judged
    sheet = pairs([PROMPT], {"base": images, "lina": images.flip(0)}, {"base": found, "lina": found[::-1]})
    pixels = np.asarray(sheet).reshape(sheet.height, sheet.width, 3)
    cells = sheet.height // 2
    for row, colours in ((0, (GOOD, BAD)), (1, (BAD, GOOD))):
        part = pixels[row * cells : (row + 1) * cells]
        first, second = part[:, -2 * (128 + 8) - 4 : -(128 + 8) - 4], part[:, -(128 + 8) - 4 :]
        for cell, colour in zip((first, second), colours, strict=True):
            other = BAD if colour == GOOD else GOOD
            below = cell[10 + 128 :]
            assert (below == colour).all(-1).any() and not (below == other).all(-1).any()


def test_pictures_without_verdicts_have_no_words():
    images = torch.zeros(4, 3, 32, 32)
    sheet = pairs(["a", "b"], {"base": images, "lina": images}, {"base": [], "lina": []})
    assert sheet.height == 8 + 4 * (128 + 8)


def test_prompts_with_one_picture_each_stand_side_by_side():
    images = {"base": torch.zeros(5, 3, 32, 32), "lina": torch.ones(5, 3, 32, 32)}
    sheet = pairs([PROMPT] * 5, images, {"base": [], "lina": []})
    assert sheet.width > 5 * 128 > 3 * 128 > sheet.height
    pixels = np.asarray(sheet)
    # The plain ones, black here, are above the steered ones.
    dark = (pixels == 0).all(-1).sum(1) >= 5 * 128
    assert dark.sum() == 128 and dark[: sheet.height // 2 + 64].sum() == 128


def test_prompts_are_picked_by_the_seed_alone():
    prompts = [str(number) for number in range(9)]
    assert pick(prompts, 4, 1) == pick(prompts, 4, 1) != pick(prompts, 4, 2)
    assert sorted(pick(prompts, 20, 1)) == prompts


@pytest.mark.parametrize("world", KINDS)
def test_kinds_are_those_of_the_world_and_calibration_is_among_them(world):
    names = [kind.name for kind in KINDS[world]]
    assert all(world_class(world).prompts(name) for name in names)
    assert set(world_class(world).calibration) <= set(names)


def test_a_world_without_rules_has_no_right_picture():
    assert true_picture("", {}) is None


def test_the_strongest_warp_is_plotted_beside_the_plain_schedule(tiny_lina):
    from gendiff.app.lina_answers import answers

    opened = answers(tiny_lina(gate=5.0), 1, 0, 4)
    html = schedule_block(opened)
    one = opened[0].lina.output.interventions[0]
    assert one.warp.parameter == pytest.approx(2 ** np.tanh(0.5), rel=1e-5)
    assert f"schedule of {len(opened)} of {len(opened)} prompts" in html and "(moebius warp, kappa = 1.38)" in html
    # Two lines of five points each, from 1 to 0.
    assert html.count("<polyline") == 2 and html.count("<circle") == 10
    assert schedule_block(answers(tiny_lina(gate=-5.0), 1, 0, 4)) == ""
